"""A discriminator with about a fifth of the parameters.

It has half the STFT filters, no MSD and three periods.
"""

from configs import base


def override(config):
    config.discriminator.stft_filters = 16
    config.discriminator.use_msd = False
    config.discriminator.mpd_periods = (2, 3, 5)


def get_config(names=""):
    return base.get_config(names, override)
