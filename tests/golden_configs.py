"""The configs of the golden files; needs no torch."""

import json

import numpy as np

MODEL = {
    "in_channels": 2,
    "base_channels": 4,
    "channel_mults": (1, 2, 3),
    "strides": (2, 3, 4),
    "latent_dim": 5,
    "kernel_size": 5,
    "dilations": (1, 2),
}
ORIGINAL_MODEL = {
    "in_channels": 2,
    "base_channels": 8,
    "channel_mults": (1, 2, 4, 8),
    "strides": (2, 4, 4, 8),
    "latent_dim": 16,
    "kernel_size": 7,
    "dilations": (1, 3, 9),
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
SCALE = {"msd_scales": (2,)}
BAND = {"n_fft": 512, "hop_length": 128, "band_ranges": ((16, 64),)}


def seeded_weights(shapes):
    """Weights of a state dict too large for the repository, from its `{name: shape}`."""
    generator, weights = np.random.default_rng(0), {}
    for name, shape in sorted(shapes.items()):
        weights[name] = generator.standard_normal(shape).astype(np.float32)
        if name.endswith("weight_g"):
            weights[name] = 0.5 + 0.2 * np.abs(weights[name])
    return weights


def weights(io):
    """The state dict of a golden file."""
    if "weight_shapes" in io:
        return seeded_weights(json.loads(str(io["weight_shapes"])))
    return {name.removeprefix("weights/"): io[name] for name in io.files if name.startswith("weights/")}


def parametrized(key):
    """The name in newer versions of torch's weight norm."""
    stem, _, leaf = key.rpartition(".")
    return f"{stem}.parametrizations.weight.original{'gv'.index(leaf[-1])}"


# A run small enough to store its checkpoints in the repository.
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
