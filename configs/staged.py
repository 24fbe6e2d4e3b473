"""The VAE alone for 20,000 steps, then a low adversarial and a high feature-matching weight."""

from configs import base


def override(config):
    config.adversarial.warmup_steps = 20_000
    config.adversarial.adversarial_weight = 0.5
    config.adversarial.feature_matching_weight = 15.0


def get_config(names=""):
    return base.get_config(f"staged,{names}")
