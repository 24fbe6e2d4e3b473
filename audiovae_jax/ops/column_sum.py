"""Sums over all axes but the last, as gradients of per-channel parameters need them."""

import math

import jax
import jax.numpy as jnp
from jax import lax


@jax.jit
def column_sum(x):
    """`x: [..., C]` to float32 `[C]`.

    On a CPU it is a product with ones: into a plain sum, XLA draws the computation of x once more, slowly, and
    spreads every per-channel factor in it over a whole array first.

    Halves of the rows are summed alike, and then together, so that what is opposite in both is zero and not the
    rounding of it. The gradients of a discriminator's biases are, while it cannot tell real (one half of its batch)
    from generated (the other), and Adam would make steps of its full rate from what is left.
    """
    rows = math.prod(x.shape[:-1])
    parts = 2 if rows % 2 == 0 else 1
    # All sums in the same parts: XLA computes those of one array, and of what is made of it, in one loop then.
    x = x.reshape(parts, -1, x.shape[-1])

    def as_product(x):
        if x.shape[-1] == 1:  # a product of two vectors depends on where in memory they begin
            return as_sum(x)
        ones = jnp.ones((1, x.shape[1]), x.dtype)
        return jnp.concatenate([jnp.matmul(ones, part, preferred_element_type=jnp.float32) for part in x])

    def as_sum(x):
        return jnp.sum(x, axis=1, dtype=jnp.float32)

    sums = lax.platform_dependent(x, cpu=as_product, default=as_sum)
    if parts > 1:
        sums = lax.optimization_barrier(sums)  # or the compiler makes one sum of these and the next
    return jnp.sum(sums, axis=0)


def add_bias(x, bias):
    """`x + bias` with `x: [..., C]` and `bias: [C]` of one dtype, or None for none.

    The bias's gradient is a `column_sum`. Like all here with a gradient of its own, it has no forward mode
    (`jax.jvp`).
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
