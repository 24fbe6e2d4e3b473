"""The leaky ReLU with a gradient that keeps its output, which a discriminator keeps anyway as a feature map."""

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def leaky_relu(x, slope: float):
    """`x` where it is positive, `slope * x` elsewhere (Maas et al., 2013); the slope is above 0.

    Only reverse mode can differentiate it.
    """
    return jnp.where(x >= 0, x, slope * x)


def _forward(x, slope):
    y = leaky_relu(x, slope)
    return y, y


def _backward(slope, y, g):
    # A zero of its own: that of the forward pass is one instruction with it, and XLA keeps it as a whole array.
    zero = lax.optimization_barrier(jnp.zeros((), y.dtype))
    return (jnp.where(y >= zero, g, slope * g),)


leaky_relu.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def known_leaky_relu(x, y, slope: float):
    """`leaky_relu(x, slope)` where it is known to be `y`: x is not computed, only its gradient."""
    return y


def _known_forward(x, y, slope):
    return y, y


def _known_backward(slope, y, g):
    return *_backward(slope, y, g), None


known_leaky_relu.defvjp(_known_forward, _known_backward)
