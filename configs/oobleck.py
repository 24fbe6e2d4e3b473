"""Stable Audio's VAE ("Oobleck"): 44.1 kHz, a hop of 2048, 156.1 M parameters.

Losses, optimizers, schedules, crops and the average of weights are those of Stable Audio 2.0, with two differences. The
warm-up is linear. The discriminator sees each channel alone.
"""

from configs import base


def override(config):
    config.model.base_channels = 128
    config.model.channel_mults = (1, 2, 4, 8, 16)
    config.model.strides = (2, 4, 4, 8, 8)
    config.model.latent_dim = 64
    config.model.activation = "snake_beta"
    config.model.posterior = "softplus"
    config.model.padding = "ceil"
    config.model.final_bias = False
    config.losses.stft.w_sc = 1.0
    config.losses.stft.w_lin_mag = 0.0
    config.losses.left_and_right = config.losses.stft.copy_and_resolve_references()
    config.losses.left_and_right._target_ = "audiovae_jax.losses.multi_resolution_stft"
    for key in {"w_sum", "w_diff"} & set(config.losses.left_and_right):
        del config.losses.left_and_right[key]
    config.losses.left_and_right.sample_rate = config.data.get_ref("sample_rate")
    config.losses.mel.weight = 0.0
    config.kl.weight = 2e-4  # 1e-4 there, without our factor of 1/2
    config.kl.reduction = "frame"
    config.kl.warmup_steps = 0
    config.adversarial.adversarial_weight = 0.1
    config.adversarial.feature_matching_weight = 5.0
    config.discriminator.stft_filters = 64
    config.discriminator.use_msd = False
    config.discriminator.use_mpd = False
    for optimizer, learning_rate in ((config.optimizer, 1.5e-4), (config.discriminator_optimizer, 3e-4)):
        optimizer.learning_rate = learning_rate
        optimizer.b1 = 0.8
        optimizer.b2 = 0.99
        optimizer.weight_decay = 1e-3
        optimizer.clip_norm = 0.0
        optimizer.schedule = "inverse_sqrt"
        optimizer.decay_steps = 200_000
        optimizer.final_learning_rate = 0.0
        optimizer.warmup_steps = 2000  # loses as many steps as the factor 1 - 0.999**(step + 1) there
    config.ema.decay = 0.9999
    config.ema.power = 0.75


def get_config(names=""):
    return base.get_config(names, override)
