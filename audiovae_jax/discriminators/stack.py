"""Convolution stacks over spectrograms and waveforms, shared by discriminators."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiovae_jax.models.layers import Dtype, WNConv1d, WNConv2d
from audiovae_jax.ops.activations import known_leaky_relu, leaky_relu

LEAKY_SLOPE = 0.1


class SpectrogramStack(nn.Module):
    """2-D convolutions over a spectrogram `[B, frames, bins, C]`.

    The stack is EnCodec's (Défossez et al., 2022). The frames axis is strided and the bins axis is dilated. Trained
    weights depend on this order.

    Attributes:
      filters: output channels of the first convolution.
      dtype: dtype of the convolutions.
      remat: whether to store only the feature maps for the backward pass. The folded copies that GPUs make of them for
        dilated convolutions (`ops.conv_forms`) are recomputed then.
    """

    filters: int
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, x, known_maps: list[jax.Array] | None = None) -> tuple[jax.Array, list[jax.Array]]:
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
        x, feature_maps = chain(convs, x, known_maps)
        return WNConv2d(1, kernel_size=(3, 3), padding=(1, 1), dtype=self.dtype, name="conv_post")(x), feature_maps


class WaveformStack(nn.Module):
    """1-D convolutions over a waveform `[B, ..., T, C]`.

    Attributes:
      layers: `(features, kernel size, stride, groups)` of each convolution.
      dtype: dtype of the convolutions.
    """

    layers: tuple[tuple[int, int, int, int], ...]
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, known_maps: list[jax.Array] | None = None) -> tuple[jax.Array, list[jax.Array]]:
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
        x, feature_maps = chain(convs, x, known_maps)
        return WNConv1d(1, kernel_size=3, padding=1, dtype=self.dtype, name="conv_post")(x), feature_maps


def chain(
    convs: Sequence[nn.Module], x, known_maps: Sequence[jax.Array] | None = None, slope: float = LEAKY_SLOPE
) -> tuple[jax.Array, list[jax.Array]]:
    """Apply every convolution, each followed by a leaky ReLU.

    Args:
      convs: the convolutions, in order.
      x: input of the first convolution.
      known_maps: the activations, if already known. Only the gradients of the convolutions are computed then.
      slope: negative slope of the leaky ReLU.

    Returns:
      The output and the list of all activations.
    """
    activations = []
    for i, conv in enumerate(convs):
        x = leaky_relu(conv(x), slope) if known_maps is None else known_leaky_relu(conv(x), known_maps[i], slope)
        activations.append(x)
    return x, activations


def resolutions(n_ffts, hop_lengths, win_lengths) -> list[tuple[int, int, int]]:
    """Return `(n_fft, hop_length, win_length)` in samples for each scale.

    Hops default to a quarter of the FFT length and windows to the FFT length.

    Raises:
      ValueError: the lists differ in length.
    """
    hop_lengths = hop_lengths or [n // 4 for n in n_ffts]
    win_lengths = win_lengths or n_ffts
    if not len(n_ffts) == len(hop_lengths) == len(win_lengths):
        raise ValueError(
            f"one hop_length and one win_length per n_fft is needed, but there are {len(n_ffts)} n_ffts, "
            f"{len(hop_lengths)} hop_lengths and {len(win_lengths)} win_lengths"
        )
    return list(zip(n_ffts, hop_lengths, win_lengths, strict=True))
