"""ACE-Step 1.5's VAE: 48 kHz, a hop of 1920, 168.7 M parameters.

There are 25 latent frames per second. It is Stable Audio's with other strides. To train only its decoder, give its
weights as `init_from`, and set `init_weights_only` and `model.encoder_frozen`.
"""

from configs import base, oobleck


def override(config):
    oobleck.override(config)
    config.model.strides = (2, 4, 4, 6, 10)
    config.data.sample_rate = 48000
    config.data.crop_length = 61440  # 32 latent frames


def get_config(names=""):
    return base.get_config(names, override)
