"""A small model on one fixed batch, to check training before a long run."""

import ml_collections

from configs import base


def override(config):
    config.num_steps = 800
    config.batch_size = 2
    config.validate_every = 100
    config.checkpoint_every = 400
    config.sample_every = 400
    config.use_adversarial = False
    config.model.base_channels = 16
    config.model.channel_mults = (1, 2, 4)
    config.model.strides = (2, 4, 8)
    config.model.latent_dim = 32
    # Magnitude losses ignore the phase. This loss compares waveforms.
    config.losses.si_sdr = ml_collections.ConfigDict({"_target_": "audiovae_jax.losses.si_sdr", "weight": 0.1})
    config.kl.weight = 1e-6
    config.optimizer.learning_rate = 3e-3
    config.optimizer.b1 = 0.8
    config.optimizer.b2 = 0.99
    config.data.crop_length = 8192
    config.data.validation_crops = 2
    config.data.num_samples = 2
    config.data.num_threads = 1
    config.data.fixed_batch = True


def get_config(names=""):
    return base.get_config(names, override)
