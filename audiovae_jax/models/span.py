"""The position of a window in a longer signal, for exact chunked inference.

A convolution pads its input with zeros. A window computes the same values as the whole signal if every layer's output
is set to zero beyond the signal's ends.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from audiovae_jax.models.padding import downsampled, upsampled


class Span(NamedTuple):
    """A batch of windows of longer signals.

    `start: [B]` is each window's first position in its signal of `length: [B]`. Both are int32, in samples at the
    layer's rate. `start` may be negative.
    """

    start: jax.Array
    length: jax.Array

    def down(self, stride: int, padding: str) -> "Span":
        """Return the span after a downsampling by `stride`, which must divide `start`."""
        return Span(self.start // stride, downsampled(self.length, stride, padding))

    def up(self, stride: int, padding: str) -> "Span":
        """Return the span after an upsampling by `stride`."""
        return Span(self.start * stride, upsampled(self.length, stride, padding))


def clear_outside(x, span: Span | None):
    """Set `x: [B, T, C]` to zero beyond the signal's ends.

    Without a span, `x` is returned unchanged.
    """
    if span is None:
        return x
    position = span.start[:, None] + jnp.arange(x.shape[1], dtype=jnp.int32)
    inside = (position >= 0) & (position < span.length[:, None])
    return jnp.where(inside[..., None], x, jnp.zeros((), x.dtype))
