"""Multi-scale waveform discriminator (MelGAN, Kumar et al., 2019)."""

import functools

import jax.numpy as jnp

from audiovae_jax.discriminators.base import Discriminator
from audiovae_jax.discriminators.stack import WaveformStack
from audiovae_jax.models.layers import Dtype

# features, kernel size, stride, groups
_LAYERS = (
    (16, 15, 1, 1),
    (64, 41, 4, 4),
    (256, 41, 4, 16),
    (256, 41, 4, 64),
    (512, 41, 4, 256),
    (512, 5, 1, 1),
)


class MultiScaleDiscriminator(Discriminator):
    """Grouped 1-D convolutions over the waveform at several average-pooled scales.

    Attributes:
      scales: average-pooling factors, one sub-discriminator for each.
      in_channels: number of audio channels.
      dtype: dtype of the convolutions.
    """

    scales: tuple[int, ...] = (1, 2, 4)
    in_channels: int = 2
    dtype: Dtype = jnp.float32

    def views(self):
        return [functools.partial(_average_pool, scale=scale) for scale in self.scales]

    def stack(self, name):
        return WaveformStack(_LAYERS, self.dtype, name=name)


def _average_pool(audio, scale):
    """Average-pool `[B, T, C]` to `[B, T // scale, C]`."""
    b, t, c = audio.shape
    return jnp.mean(audio[:, : t // scale * scale].reshape(b, t // scale, scale, c), axis=2)
