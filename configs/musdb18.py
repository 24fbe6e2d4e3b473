"""MUSDB18-HQ: stems and mixtures, validated on the official fourteen songs.

Set data.root.
"""

from configs import base


def override(config):
    config.data.source = "musdb18"
    config.data.validation_crops = 28  # two of each validation song


def get_config(names=""):
    return base.get_config(names, override)
