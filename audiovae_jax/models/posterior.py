"""Posteriors: the Gaussian of the latent that the encoder's last layer describes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

LOGVAR_RANGE = (-20.0, 20.0)
_MIN_STD = 1e-4
# Instead of the logarithm of 0. Adding noise of this variance, 4e-44, does not change a float32 mean.
_NO_LOGVAR = -100.0


class Gaussian(NamedTuple):
    """Independent normal distributions: arrays of one shape."""

    mean: jax.Array
    logvar: jax.Array
    std: jax.Array


def logvar(parameters) -> Gaussian:
    """Split `[..., 2 * n]` into means and log-variances, clipped to -20..20."""
    mean, logvar = jnp.split(parameters, 2, axis=-1)
    logvar = jnp.clip(logvar, *LOGVAR_RANGE)
    return Gaussian(mean, logvar, jnp.exp(logvar / 2))


def softplus(parameters) -> Gaussian:
    """Split `[..., 2 * n]` into means and scales, as Stable Audio does.

    The standard deviation is `softplus(scale) + 1e-4`.
    """
    mean, scale = jnp.split(parameters, 2, axis=-1)
    std = jax.nn.softplus(scale) + _MIN_STD
    return Gaussian(mean, 2 * jnp.log(std), std)


def none(parameters) -> Gaussian:
    """Take `[..., n]` as the latent itself, as in a deterministic autoencoder.

    It has no KL divergence.
    """
    return Gaussian(parameters, jnp.full_like(parameters, _NO_LOGVAR), jnp.zeros_like(parameters))


POSTERIORS = {"logvar": logvar, "softplus": softplus, "none": none}


def parameters_per_latent(name: str) -> int:
    """The number of the encoder's output channels per latent channel."""
    return 1 if name == "none" else 2
