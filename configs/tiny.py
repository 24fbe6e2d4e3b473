"""A small model that learns audibly in about three minutes on two CPU cores."""

from configs import base


def override(config):
    config.num_steps = 300
    config.batch_size = 4
    config.validate_every = 50
    config.checkpoint_every = 100
    config.sample_every = 100
    config.model.base_channels = 16
    config.model.latent_dim = 16
    config.data.crop_length = 16384
    config.adversarial.warmup_steps = 150
    config.kl.warmup_steps = 100
    config.optimizer.learning_rate = 1e-3
    config.discriminator.stft_filters = 4
    config.discriminator.n_ffts = (1024, 512, 256)
    config.discriminator.use_msd = False
    config.discriminator.mpd_periods = (2, 3, 5)
    config.discriminator.mpd_channels = (8, 32, 64, 128, 128)
    config.data.num_threads = 2


def get_config(names=""):
    return base.get_config(f"tiny,{names}")
