"""A plain VAE without a discriminator."""

from configs import base


def override(config):
    config.use_adversarial = False


def get_config(names=""):
    return base.get_config(names, override)
