"""MUSDB18-HQ: stems and mixtures of its training songs, validated on the official fourteen. Set data.root."""

from configs import base


def override(config):
    config.data.source = "musdb18"
    config.data.validation_crops = 28  # two of each validation song


def get_config(names=""):
    return base.get_config(f"musdb18,{names}")
