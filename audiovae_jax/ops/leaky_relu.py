"""The leaky ReLU with a gradient that keeps its output, which a discriminator keeps anyway as a feature map."""

import functools

import jax
import jax.numpy as jnp


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
    return (jnp.where(y >= 0, g, slope * g),)


leaky_relu.defvjp(_forward, _backward)
