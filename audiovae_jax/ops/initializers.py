"""Initializers that compile few programs for many shapes.

So a model is created fast.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np


def uniform(key, shape, bound):
    """Draw like `jax.random.uniform` from `-bound` to `bound`.

    The sizes of the compiled programs are powers of two.
    """
    size = math.prod(shape)
    return _scale(_draw(key, 1 << (size - 1).bit_length()), shape, bound)


@functools.partial(jax.jit, static_argnums=1)
def _draw(key, size):
    # One dimension compiles fastest. jax's default generator computes number i from i only, for any size.
    return jax.random.uniform(key, (size,))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _scale(drawn, shape, bound):
    drawn = drawn[: math.prod(shape)].reshape(shape)
    return jnp.maximum(drawn * (2 * np.float32(bound)) - np.float32(bound), -np.float32(bound))
