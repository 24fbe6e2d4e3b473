"""Only the VAE for 20,000 steps, then with the discriminator.

The adversarial weight is low and the feature-matching weight is high.
"""

from configs import base


def override(config):
    config.adversarial.warmup_steps = 20_000
    config.adversarial.adversarial_weight = 0.5
    config.adversarial.feature_matching_weight = 15.0


def get_config(names=""):
    return base.get_config(names, override)
