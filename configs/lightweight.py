"""A discriminator with a fifth of the parameters: half the STFT filters, no MSD, three periods."""

from configs import base


def override(config):
    config.discriminator.stft_filters = 16
    config.discriminator.use_msd = False
    config.discriminator.mpd_periods = (2, 3, 5)


def get_config(names=""):
    return base.get_config(f"lightweight,{names}")
