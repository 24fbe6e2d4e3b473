"""A plain VAE: no discriminator is built, run or stored."""

from configs import base


def override(config):
    config.use_adversarial = False


def get_config(names=""):
    return base.get_config(f"no_adversarial,{names}")
