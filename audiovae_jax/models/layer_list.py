"""The model as a list of layers, which run block by block.

Running block by block computes no sample twice, as with the step-wise layers of SequenceLayers (Skerry-Ryan et al.,
2025). Each layer keeps the inputs that its next outputs need. Outputs that need later inputs are delayed, so all blocks
have the same shapes. Beyond the signal's ends, every layer's output is set to zero (see `span`), as in a single pass.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.models.layers import ACTIVATIONS
from audiovae_jax.models.padding import around, around_strided
from audiovae_jax.models.span import Span, clear_outside
from audiovae_jax.ops import convolution


class Block(NamedTuple):
    """A block of a stream, at one layer.

    Attributes:
      x: `[B, size, C]`.
      first: the position of the first sample of the stream's first block; negative if the layers before have a delay.
      index: `[]`, the number of blocks before this one.
      length: `[]`, samples of the whole signal.
    """

    x: jax.Array
    first: int
    index: jax.Array
    length: jax.Array

    def cleared(self) -> "Block":
        """Return the block with zeros beyond the signal's ends."""
        batch, size, _ = self.x.shape
        span = Span(*(jnp.full(batch, value, jnp.int32) for value in (self.index * size + self.first, self.length)))
        return self._replace(x=clear_outside(self.x, span))


@dataclasses.dataclass(frozen=True)
class Conv:
    """A zero-padded convolution, or a transposed one.

    Attributes:
      path: names of the module and its parents.
      kernel_size, stride, dilation: of the convolution.
      padding: zeros before and after its input. A transposed convolution omits as many outputs.
      is_transposed: whether it upsamples by `stride`; its kernel size is `2 * stride`.
    """

    path: tuple[str, ...]
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    padding: tuple[int, int] = (0, 0)
    is_transposed: bool = False

    def first(self, first: int) -> int:
        """Return the position of a stream's first output, given that of its first input."""
        if self.is_transposed:
            return first * self.stride - self.padding[0]
        return (first + self.padding[0] - self._reach - 1) // self.stride + 1

    def inputs(self, low: int, high: int) -> tuple[int, int]:
        """Return the first and last input that outputs `low` to `high` depend on."""
        if self.is_transposed:  # output t depends on the inputs i with 0 <= t + padding - i * stride < 2 * stride
            return (low + self.padding[0]) // self.stride - 1, (high + self.padding[0]) // self.stride
        return low * self.stride - self.padding[0], high * self.stride - self.padding[0] + self._reach

    def length(self, length):
        """Return the length of a signal's output."""
        if self.is_transposed:
            return (length + 1) * self.stride - sum(self.padding)
        length = length + sum(self.padding)
        return convolution.conv_length(length, self.kernel_size, stride=self.stride, dilation=self.dilation)

    def step(self, params: dict, state: tuple, block: Block, dtype) -> tuple[tuple, Block]:
        """Return the next state and the output for one block."""
        for name in self.path:
            params = params[name]
        kernel, bias = params["kernel"].astype(dtype), params.get("bias")
        bias = None if bias is None else bias.astype(dtype)
        first = self.first(block.first)
        held = 1 if self.is_transposed else block.first - first * self.stride + self.padding[0]
        state, x = _extended(state, block.x.astype(dtype), held)
        if self.is_transposed:
            y = convolution.conv_transpose1d(x, kernel, bias, stride=self.stride)
            y = y[:, self.stride : self.stride * (1 + block.x.shape[1])]
        else:
            y = convolution.conv1d(x, kernel, bias, stride=self.stride, dilation=self.dilation)
        return state, Block(y, first, block.index, self.length(block.length)).cleared()

    @property
    def _reach(self):
        return (self.kernel_size - 1) * self.dilation


@dataclasses.dataclass(frozen=True)
class Activation:
    """An activation of `layers`, by name; it has no state."""

    path: tuple[str, ...]
    name: str

    def first(self, first: int) -> int:
        """Return the position of a stream's first output, given that of its first input."""
        return first

    def inputs(self, low: int, high: int) -> tuple[int, int]:
        """Return the first and last input that outputs `low` to `high` depend on."""
        return low, high

    def step(self, params: dict, state: tuple, block: Block, dtype) -> tuple[tuple, Block]:
        """Return the next state and the output for one block."""
        for name in self.path:
            params = params.get(name, {})  # ELU has no parameters
        return (), block._replace(x=ACTIVATIONS[self.name](dtype).apply({"params": params}, block.x))


@dataclasses.dataclass(frozen=True)
class Residual:
    """`x + layers(x)`, with `x` delayed like its layers."""

    layers: tuple[Conv | Activation, ...]

    def first(self, first: int) -> int:
        """Return the position of a stream's first output, given that of its first input."""
        return first_output(self.layers, first)

    def inputs(self, low: int, high: int) -> tuple[int, int]:
        """Return the first and last input that outputs `low` to `high` depend on."""
        first, last = inputs(self.layers, low, high)
        return min(low, first), max(high, last)

    def step(self, params: dict, state: tuple, block: Block, dtype) -> tuple[tuple, Block]:
        """Return the next state and the output for one block."""
        skipped, inner = state or ((), ())
        inner, result = run(self.layers, params, inner, block, dtype)
        skipped, x = _extended(skipped, block.x, block.first - result.first)
        return (skipped, inner), result._replace(x=x[:, : block.x.shape[1]] + result.x).cleared()


Layer = Conv | Activation | Residual


def encoder_layers(model: AudioVAE) -> tuple[Layer, ...]:
    """Return the layers of a model's encoder, in order."""
    return tuple(_encoder_layers(model))


def decoder_layers(model: AudioVAE) -> tuple[Layer, ...]:
    """Return the layers of a model's decoder, in order, without its final tanh."""
    return tuple(_decoder_layers(model))


def _encoder_layers(model) -> Iterator[Layer]:
    yield _same(model, "input_conv", 7)
    for i, stride in enumerate(model.strides):
        yield from _residual_units(model, f"blocks_{i}")
        yield Activation((f"blocks_{i}", "snake"), model.activation)
        yield Conv((f"blocks_{i}", "downsample"), 2 * stride, stride, padding=around_strided(stride, model.padding))
    yield Activation(("final_snake",), model.activation)
    yield _same(model, "final_conv", 3)
    if model.bottleneck_channels:
        yield _same(model, "projection", 1)


def _decoder_layers(model) -> Iterator[Layer]:
    if model.bottleneck_channels:
        yield _same(model, "projection", 1)
    yield _same(model, "input_conv", 7)
    for i, stride in enumerate(reversed(model.strides)):
        yield Activation((f"blocks_{i}", "snake"), model.activation)
        padding = around_strided(stride, model.padding)[::-1]
        yield Conv((f"blocks_{i}", "upsample"), 2 * stride, stride, padding=padding, is_transposed=True)
        yield from _residual_units(model, f"blocks_{i}")
    yield Activation(("final_snake",), model.activation)
    yield _same(model, "final_conv", 7)


def _residual_units(model, block) -> Iterator[Layer]:
    for i, dilation in enumerate(model.dilations):
        unit = (block, f"res_units_{i}")
        padding = around((model.kernel_size - 1) * dilation, model.padding)
        yield Residual(
            (
                Activation((*unit, "snake1"), model.activation),
                Conv((*unit, "conv1"), model.kernel_size, dilation=dilation, padding=padding),
                Activation((*unit, "snake2"), model.activation),
                Conv((*unit, "conv2"), 1),
            )
        )


def _same(model, name, kernel_size):
    return Conv((name,), kernel_size, padding=around(kernel_size - 1, model.padding))


def first_output(layers: tuple[Layer, ...], first: int = 0) -> int:
    """Return the position of the first output, given that of the first input."""
    for layer in layers:
        first = layer.first(first)
    return first


def inputs(layers: tuple[Layer, ...], low: int, high: int) -> tuple[int, int]:
    """Return the first and last input that outputs `low` to `high` depend on."""
    for layer in reversed(layers):
        low, high = layer.inputs(low, high)
    return low, high


def run(layers: tuple[Layer, ...], params: dict, states: tuple, block: Block, dtype: Any) -> tuple[tuple, Block]:
    """Run layers on one block of a stream.

    Args:
      layers: see `encoder_layers`.
      params: of the encoder or decoder, with folded weight norm.
      states: the result for the block before; () for the first block.
      block: its size must be a multiple of the strides' product.
      dtype: of the convolutions.

    Returns:
      `(states, block)`: the layers' states, and their output.
    """
    after = []
    for layer, state in zip(layers, states or ((),) * len(layers), strict=True):
        state, block = layer.step(params, state, block, dtype)
        after.append(state)
    return tuple(after), block


def blocks_until_steady(layers: tuple[Layer, ...], size: int) -> int:
    """Return the number of blocks until no layer's output precedes the signal.

    The blocks have `size` samples.
    """
    first, rate, most = 0, 1.0, 0.0
    for layer in layers:
        first = layer.first(first)
        if isinstance(layer, Conv):
            rate *= layer.stride if layer.is_transposed else 1 / layer.stride
        most = max(most, -first / (size * rate))
    return math.ceil(most)


def _extended(state, x, held):
    """Return the next state, and `x` with the `held` samples before it.

    A state of () stands for zeros.
    """
    if not len(state):
        state = (jnp.zeros((x.shape[0], held, x.shape[2]), x.dtype),)
    x = jnp.concatenate([state[0], x], axis=1)
    return (x[:, x.shape[1] - held :],), x
