"""Where a window lies in a longer signal, so that a network can treat the signal's edges as edges.

A convolution sees zeros beyond the ends of its input. A window that is cut out of a signal, or
reaches beyond its ends, sees the same if every layer's output is set to zero beyond the signal's ends.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Span(NamedTuple):
    """A batch of windows: `start: [B]` is the signal's position of each window's first, `length: [B]` the signal's.

    Both int32, in samples at the rate of the layer; `start` may be negative.
    """

    start: jax.Array
    length: jax.Array

    def down(self, stride: int) -> "Span":
        """After a convolution of kernel `2 * stride` and padding `stride // 2`; `start` must be a multiple."""
        return Span(self.start // stride, (self.length - stride % 2) // stride)

    def up(self, stride: int) -> "Span":
        """After the transposed convolution of that kernel and padding."""
        return Span(self.start * stride, self.length * stride + stride % 2)


def clear_outside(x, span: Span | None):
    """`x: [B, T, C]` with zeros beyond the signal's ends; unchanged without a span."""
    if span is None:
        return x
    position = span.start[:, None] + jnp.arange(x.shape[1], dtype=jnp.int32)
    inside = (position >= 0) & (position < span.length[:, None])
    return jnp.where(inside[..., None], x, jnp.zeros((), x.dtype))
