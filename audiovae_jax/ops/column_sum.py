"""Sum over all axes but the last: the gradients of per-channel parameters."""

import math

import jax
import jax.numpy as jnp
from jax import lax


@jax.jit
def column_sum(x):
    """Sum `x: [..., C]` to float32 `[C]`.

    On CPUs this is a matrix product with ones. XLA would fuse the computation of x into a plain sum and repeat it,
    slowly, with every per-channel factor broadcast to a whole array.

    The two halves of the rows are summed in the same order, then added, so that opposite halves cancel exactly. Real
    and generated audio are the halves of a discriminator's batch. While it cannot distinguish them, its bias
    gradients are such sums. From a rounding error there, Adam would make a step of full size.
    """
    rows = math.prod(x.shape[:-1])
    parts = 2 if rows % 2 == 0 else 1
    # All sums use the same parts, so that XLA computes the sums of one array in one loop.
    x = x.reshape(parts, -1, x.shape[-1])

    def as_product(x):
        if x.shape[-1] == 1:  # a product of two vectors depends on their alignment in memory
            return as_sum(x)
        ones = jnp.ones((1, x.shape[1]), x.dtype)
        return jnp.concatenate([jnp.matmul(ones, part, preferred_element_type=jnp.float32) for part in x])

    def as_sum(x):
        return jnp.sum(x, axis=1, dtype=jnp.float32)

    sums = lax.platform_dependent(x, cpu=as_product, default=as_sum)
    if parts > 1:
        sums = lax.optimization_barrier(sums)  # or XLA merges both sums into one
    return jnp.sum(sums, axis=0)


def add_bias(x, bias):
    """Return `x + bias`, or `x` if the bias is None.

    `x: [..., C]` and `bias: [C]` have one dtype. The bias's gradient is a `column_sum`. Only reverse mode can
    differentiate it (`jax.vjp`, not `jax.jvp`).
    """
    return x if bias is None else _add_bias(x, bias)


@jax.custom_vjp
def _add_bias(x, bias):
    return x + bias


def _add_bias_forward(x, bias):
    return x + bias, None


def _add_bias_backward(_, g):
    return g, column_sum(g).astype(g.dtype)


_add_bias.defvjp(_add_bias_forward, _add_bias_backward)
