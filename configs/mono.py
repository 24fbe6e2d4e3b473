"""Mono audio: one channel, and a plain STFT loss instead of sum and difference."""

from configs import base


def override(config):
    config.data.channels = 1
    config.losses.stft._target_ = "audiovae_jax.losses.multi_resolution_stft"
    for key in {"w_sum", "w_diff"} & set(config.losses.stft):
        del config.losses.stft[key]


def get_config(names=""):
    return base.get_config(names, override)
