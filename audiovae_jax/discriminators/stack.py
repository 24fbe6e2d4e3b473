"""What the discriminators share: conv stacks over spectrograms and waveforms, and the contract of their outputs."""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiovae_jax.models.layers import Dtype, WNConv1d, WNConv2d, normalized_dtype
from audiovae_jax.ops import order
from audiovae_jax.ops.interleaved import is_interleaved
from audiovae_jax.ops.leaky_relu import known_leaky_relu, leaky_relu

# A discriminator's output: logits, and per logit the activations of every conv before it.
Output = tuple[list[jax.Array], list[list[jax.Array]]]

LEAKY_SLOPE = 0.1


class Judge(nn.Module):
    """A discriminator whose pull-back needs no more than its feature maps: `judge` is called on real and generated
    audio together, and once more, with what it is known to say, for the gradient of the generator alone.

    Whatever else is a discriminator is called on each, and pulled back from each call.
    """

    def __post_init__(self):
        if hasattr(self, "dtype"):
            object.__setattr__(self, "dtype", normalized_dtype(self.dtype))
        super().__post_init__()

    def __call__(self, audio) -> Output:
        return split(self.judge(audio))

    def judge(self, audio, known: list[list] | None = None) -> Output:
        """`audio: [B, T, C]` to logits and feature maps, each with B leading or `Interleaved`.

        Args:
          audio: what to judge.
          known: the feature maps for it. Neither they nor the logits are computed then, only their gradients.
        """
        raise NotImplementedError


def is_judge(discriminator: nn.Module) -> bool:
    """Whether `judge` says what calling the discriminator does, since no subclass calls it otherwise."""
    if not isinstance(discriminator, Judge):
        return False
    classes = type(discriminator).__mro__
    return not any("__call__" in vars(cls) for cls in classes[: classes.index(Judge)])


class SpectrogramStack(nn.Module):
    """The 2-D convolutions over a spectrogram `[B, frames, bins, C]` (EnCodec, Défossez et al., 2022).

    The frames axis is strided and the bins axis dilated; trained weights depend on it.

    Attributes:
      filters: channels of the first convolution.
      dtype: what the convolutions compute in.
      remat: keep the feature maps only. Else what a GPU's form makes of them for dilated convolutions
        (`ops.conv_forms`) is kept beside them until the gradient is computed.
    """

    filters: int
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x, known: list[jax.Array] | None = None) -> tuple[jax.Array, list[jax.Array]]:
        conv_class = nn.remat(WNConv2d) if self.remat else WNConv2d
        layers = [(self.filters, 1, 1)] + [(min(4 * self.filters, 512), 2, d) for d in (1, 2, 4)]
        convs = [
            conv_class(
                features,
                kernel_size=(3, 9),
                stride=(stride, 1),
                dilation=(1, dilation),
                padding=(1, 4 * dilation),
                dtype=self.dtype,
                name=f"conv_layers_{i}",
            )
            for i, (features, stride, dilation) in enumerate(layers)
        ]
        x, feature_maps = chain(convs, x, known)
        return WNConv2d(1, kernel_size=(3, 3), padding=(1, 1), dtype=self.dtype, name="conv_post")(x), feature_maps


class WaveformStack(nn.Module):
    """The 1-D convolutions over a waveform `[B, ..., T, C]`, as `(features, kernel size, stride, groups)` each."""

    layers: tuple[tuple[int, int, int, int], ...]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, known: list[jax.Array] | None = None) -> tuple[jax.Array, list[jax.Array]]:
        convs = [
            WNConv1d(
                features,
                kernel_size=kernel_size,
                stride=stride,
                padding=kernel_size // 2,
                groups=groups,
                dtype=self.dtype,
                name=f"convs_{i}",
            )
            for i, (features, kernel_size, stride, groups) in enumerate(self.layers)
        ]
        x, feature_maps = chain(convs, x, known)
        return WNConv1d(1, kernel_size=3, padding=1, dtype=self.dtype, name="conv_post")(x), feature_maps


def chain(
    convs: Sequence[nn.Module], x, known: Sequence[jax.Array] | None = None, slope: float = LEAKY_SLOPE
) -> tuple[jax.Array, list[jax.Array]]:
    """`x` after every conv and a leaky ReLU behind each, and the activations on the way.

    Where these are `known`, no conv is computed, only what its gradient needs.
    """
    activations = []
    for i, conv in enumerate(convs):
        x = leaky_relu(conv(x), slope) if known is None else known_leaky_relu(conv(x), known[i], slope)
        activations.append(x)
    return x, activations


def each(known: list | None, n: int) -> list:
    """The known feature maps of the first `n` sub-discriminators; None for each where none are known."""
    return [None] * n if known is None else known[:n]


def in_turn(audio, outputs: list, known: list | None):
    """`audio` for the sub-discriminator that comes after those of `outputs`: on a CPU it waits for them.

    All at one time, as XLA orders them there, take twice the memory (see the benchmark's README). Where feature maps
    are `known`, nothing is computed that could be waited for.
    """
    if not outputs or known is not None:
        return audio
    return order.after(audio, jax.tree.leaves(outputs[-1])[0])


def gather(outputs) -> Output:
    """The sub-discriminators' `(logits, feature maps)` as one discriminator's output."""
    outputs = list(outputs)
    return [logits for logits, _ in outputs], [maps for _, maps in outputs]


def split(output: Output) -> Output:
    """The output without `Interleaved` arrays: first parts first, then second ones."""
    alone, interleaved = [], []
    for logits, maps in zip(*output, strict=True):
        (interleaved if is_interleaved(logits) else alone).append((logits, maps))
    parts = [(logits.split(), zip(*(x.split() for x in maps), strict=True)) for logits, maps in interleaved]
    parts = [[(x, list(maps)) for x, maps in zip(*entry, strict=True)] for entry in parts]
    return gather([*(entry for of_all in zip(*parts, strict=True) for entry in of_all), *alone])


def resolutions(n_ffts, hop_lengths, win_lengths) -> list[tuple[int, int, int]]:
    """`(n_fft, hop, window)` in samples for each scale; hops default to a quarter of the FFT, windows to all of it.

    Raises:
      ValueError: the lists are not of one length.
    """
    hop_lengths = hop_lengths or [n // 4 for n in n_ffts]
    win_lengths = win_lengths or n_ffts
    if not len(n_ffts) == len(hop_lengths) == len(win_lengths):
        raise ValueError(
            f"one hop_length and one win_length per n_fft is needed, but there are {len(n_ffts)} n_ffts, "
            f"{len(hop_lengths)} hop_lengths and {len(win_lengths)} win_lengths"
        )
    return list(zip(n_ffts, hop_lengths, win_lengths, strict=True))


def require_audio(audio, in_channels: int, name: str):
    """Raise ValueError unless `audio` is `[B, T, in_channels]`."""
    if audio.ndim != 3 or audio.shape[-1] != in_channels:
        raise ValueError(f"{name} takes audio [B, T, {in_channels}], not {tuple(audio.shape)}")


def check_output(output: Any, name: str) -> Output:
    """Raise TypeError unless `output` is what a discriminator must return; say what it is instead."""

    def is_array(x):
        return hasattr(x, "shape") and hasattr(x, "dtype")

    wanted = f"{name} must return (logits: list of arrays, feature_maps: list of lists of arrays)"
    if not isinstance(output, tuple) or len(output) != 2:
        raise TypeError(f"{wanted}, but it returned {_describe(output)}")
    logits, feature_maps = output
    if not isinstance(logits, (list, tuple)) or not logits or not all(is_array(x) for x in logits):
        raise TypeError(f"{wanted}, but its logits are {_describe(logits)}")
    if not isinstance(feature_maps, (list, tuple)) or not all(
        isinstance(maps, (list, tuple)) and all(is_array(x) for x in maps) for maps in feature_maps
    ):
        raise TypeError(f"{wanted}, but its feature_maps are {_describe(feature_maps)}")
    if not any(len(maps) for maps in feature_maps):
        raise TypeError(f"{wanted}, but its feature_maps hold no array, so there is nothing to match")
    return output


def _describe(value):
    if isinstance(value, (list, tuple)):
        kinds = sorted({"array" if hasattr(x, "shape") else type(x).__name__ for x in value})
        return f"a {type(value).__name__} of {len(value)} ({', '.join(kinds) or 'empty'})"
    if hasattr(value, "shape"):
        return f"one array of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
