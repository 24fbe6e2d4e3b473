"""Distances on waveforms: L1 and negative signal-to-distortion ratios."""

import jax.numpy as jnp

from audiovae_jax.losses.spectral import items, require_same_shape

_EPS = 1e-8


def waveform_l1(*, prediction, target):
    """Return the mean `|prediction - target|` of `[B, T, C]` audio."""
    require_same_shape(prediction, target)
    return jnp.mean(jnp.abs(prediction.astype(jnp.float32) - target.astype(jnp.float32)))


def si_sdr(*, prediction, target):
    """Return the negative scale-invariant signal-to-distortion ratio in dB.

    Defined by Le Roux et al., 2019. The mean of each channel is subtracted. The ratio is computed per channel and
    averaged. The sign is flipped so that lower is better.

    Args:
      prediction, target: `[B, T, C]` audio.
    """
    prediction, target, projection = _project(prediction, target)
    return _negative_ratio(projection, prediction - projection)


def sd_sdr(*, prediction, target):
    """Return the negative scale-dependent SDR in dB.

    It differs from `si_sdr` in that a level error counts as distortion.

    Args:
      prediction, target: `[B, T, C]` audio.
    """
    prediction, target, projection = _project(prediction, target)
    return _negative_ratio(projection, prediction - target)


def _project(prediction, target):
    prediction, target = (a - jnp.mean(a, axis=-1, keepdims=True) for a in items(prediction, target))
    scale = jnp.sum(prediction * target, axis=-1, keepdims=True) / (
        jnp.sum(jnp.square(target), axis=-1, keepdims=True) + _EPS
    )
    return prediction, target, scale * target


def _negative_ratio(signal, noise):
    ratio = jnp.sum(jnp.square(signal), axis=-1) / (jnp.sum(jnp.square(noise), axis=-1) + _EPS)
    return -jnp.mean(10 * jnp.log10(ratio + _EPS))
