"""Multi-scale complex-STFT discriminator (EnCodec, Défossez et al., 2022)."""

import functools

import jax
import jax.numpy as jnp

from audiovae_jax.discriminators.base import Discriminator, Output, require_audio
from audiovae_jax.discriminators.stack import SpectrogramStack, resolutions
from audiovae_jax.models.layers import Dtype
from audiovae_jax.ops import signal
from audiovae_jax.ops.interleaved import Interleaved, is_interleaved


class MultiScaleSTFTDiscriminator(Discriminator):
    """One conv stack per STFT resolution, with real and imaginary parts as channels.

    Each audio channel is processed separately with the same weights. Outputs are ordered by channel, then by scale.

    Attributes:
      filters: output channels of the first convolution.
      in_channels: number of audio channels.
      n_ffts: FFT lengths in samples, one per scale.
      hop_lengths: hop lengths in samples; None for a quarter of each FFT.
      win_lengths: Hann window lengths in samples; None for the FFT length.
      normalized: whether to scale each STFT by `n_fft ** -0.5`.
      dtype: dtype of the convolutions; the STFT is float32.
      remat: see `SpectrogramStack`.
    """

    filters: int = 32
    in_channels: int = 2
    n_ffts: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    hop_lengths: tuple[int, ...] | None = None
    win_lengths: tuple[int, ...] | None = None
    normalized: bool = True
    dtype: Dtype = jnp.float32
    remat: bool = False

    def discriminate(self, audio, known_maps=None) -> Output:
        # The channels share weights, so they become items of one batch.
        require_audio(audio, self.in_channels, type(self).__name__)
        b, t, c = audio.shape
        known_maps = jax.tree.map(_array, known_maps, is_leaf=is_interleaved)
        output = self.each_view(jnp.moveaxis(audio, -1, 1).reshape(b * c, t), known_maps)
        return jax.tree.map(lambda x: Interleaved(x, c), output)

    def views(self):
        scales = resolutions(self.n_ffts, self.hop_lengths, self.win_lengths)
        return [functools.partial(self._image, scale=scale) for scale in scales]

    def _image(self, x, scale):
        spectrum = signal.stft(x, *scale)
        if self.normalized:
            spectrum = spectrum * scale[0] ** -0.5
        return jnp.stack([spectrum.real, spectrum.imag], axis=-1)

    def stack(self, name):
        return SpectrogramStack(self.filters, self.dtype, self.remat, name=name)


def _array(x):
    return x.array if is_interleaved(x) else x
