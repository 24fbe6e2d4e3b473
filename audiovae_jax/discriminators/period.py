"""Multi-period waveform discriminator (HiFi-GAN, Kong et al., 2020)."""

import functools

import jax.numpy as jnp

from audiovae_jax.discriminators.base import Discriminator
from audiovae_jax.discriminators.stack import WaveformStack
from audiovae_jax.models.layers import Dtype


class MultiPeriodDiscriminator(Discriminator):
    """Convolutions over the waveform folded at several periods.

    Attributes:
      periods: periods in samples, one sub-discriminator for each.
      in_channels: number of audio channels.
      channels: output channels of the convolutions; all but the last have stride 3.
      dtype: dtype of the convolutions.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    in_channels: int = 2
    channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    dtype: Dtype = jnp.float32

    def views(self):
        return [functools.partial(_fold, period=period) for period in self.periods]

    def stack(self, name):
        # Torch's kernels are (taps, 1), which equals a 1-D convolution along T / period for every phase.
        *strided, last = self.channels
        layers = (*((features, 5, 3, 1) for features in strided), (last, 5, 1, 1))
        return WaveformStack(layers, self.dtype, name=name)


def _fold(audio, period):
    """Fold `[B, T, C]` to `[B, period, ceil(T / period), C]` with reflect padding."""
    b, t, c = audio.shape
    audio = jnp.pad(audio, ((0, 0), (0, -t % period), (0, 0)), mode="reflect")
    return audio.reshape(b, -1, period, c).transpose(0, 2, 1, 3)
