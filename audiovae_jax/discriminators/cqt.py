"""Multi-scale sub-band CQT discriminator (Gu et al., arXiv 2311.14957, 2023)."""

import functools

import flax.linen as nn
import jax.numpy as jnp

from audiovae_jax.discriminators.base import Discriminator
from audiovae_jax.discriminators.stack import SpectrogramStack
from audiovae_jax.models.layers import Dtype, WNConv2d
from audiovae_jax.ops import signal


class MultiScaleSubBandCQTDiscriminator(Discriminator):
    """One conv stack per constant-Q transform of all audio channels.

    The input channels are the real and imaginary parts. A CQT resolves low pitches finely in frequency and high ones
    finely in time. Each octave first passes a convolution of its own (the sub-bands). `SpectrogramStack` then processes
    all octaves together.

    Attributes:
      filters: output channels of the stack's first convolution.
      in_channels: number of audio channels.
      bins_per_octave: one per scale.
      hop_lengths: hop lengths in samples, one per scale, each a multiple of `2 ** (octaves - 1)`.
      octaves: number of octaves above `f_min`, for all scales.
      f_min: centre frequency of the lowest bin in Hz.
      sample_rate: in Hz.
      dtype: dtype of the convolutions; the CQT is float32.
      remat: see `SpectrogramStack`.
    """

    filters: int = 32
    in_channels: int = 2
    bins_per_octave: tuple[int, ...] = (24, 36, 48)
    hop_lengths: tuple[int, ...] = (512, 256, 256)
    octaves: int = 9
    f_min: float = 32.70
    sample_rate: int = 44100
    dtype: Dtype = jnp.float32
    remat: bool = False

    def views(self):
        if len(self.bins_per_octave) != len(self.hop_lengths):
            raise ValueError(
                f"one hop_length per bins_per_octave is needed, but there are {len(self.hop_lengths)} for "
                f"{len(self.bins_per_octave)}"
            )
        scales = zip(self.bins_per_octave, self.hop_lengths, strict=True)
        return [functools.partial(self._image, bins=bins, hop=hop) for bins, hop in scales]

    def _image(self, audio, bins, hop):
        spectrum = signal.cqt(
            jnp.moveaxis(audio, -1, 1), self.sample_rate, hop,
            f_min=self.f_min, octaves=self.octaves, bins_per_octave=bins,
        )  # fmt: skip
        return jnp.moveaxis(jnp.concatenate([spectrum.real, spectrum.imag], axis=1), 1, -1)

    def stack(self, name):
        return _SubBandStack(self.filters, self.octaves, self.dtype, self.remat, name=name)


class _SubBandStack(nn.Module):
    filters: int
    octaves: int
    dtype: Dtype
    remat: bool

    @nn.compact
    def __call__(self, x, known_maps=None):
        bands = [
            WNConv2d(x.shape[-1], kernel_size=(3, 9), padding=(1, 4), dtype=self.dtype, name=f"octaves_{i}")(band)
            for i, band in enumerate(jnp.split(x, self.octaves, axis=2))
        ]
        stack = SpectrogramStack(self.filters, self.dtype, self.remat, name="stack")
        return stack(jnp.concatenate(bands, axis=2), known_maps)
