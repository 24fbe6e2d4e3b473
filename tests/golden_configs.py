"""What the golden files are of; needs no torch."""

MODEL = {
    "in_channels": 2,
    "base_channels": 4,
    "channel_mults": (1, 2, 3),
    "strides": (2, 3, 4),
    "latent_dim": 5,
    "kernel_size": 5,
    "dilations": (1, 2),
}
DISCRIMINATOR = {
    "stft_filters": 2,
    "n_ffts": (128, 64),
    "use_msd": False,
    "mpd_periods": (2, 3),
    "mpd_channels": (2, 4, 6),
    "use_mel_stft": True,
    "mel_stft_filters": 2,
    "mel_stft_n_ffts": (256,),
    "mel_stft_n_mels": (12,),
}


def parametrized(key):
    """The name in newer versions of torch's weight norm."""
    stem, _, leaf = key.rpartition(".")
    return f"{stem}.parametrizations.weight.original{'gv'.index(leaf[-1])}"


# A run small enough to keep its checkpoints in the repository.
MICRO_MODEL = {
    "in_channels": 2,
    "base_channels": 2,
    "channel_mults": (1, 2),
    "strides": (2, 4),
    "latent_dim": 3,
    "kernel_size": 5,
    "dilations": (1, 3),
}
MICRO_DISCRIMINATOR = {
    "stft_filters": 1,
    "n_ffts": (64,),
    "use_msd": False,
    "mpd_periods": (2,),
    "mpd_channels": (2, 2, 2),
    "use_mel_stft": True,
    "mel_stft_filters": 1,
    "mel_stft_n_ffts": (128,),
    "mel_stft_n_mels": (6,),
}
