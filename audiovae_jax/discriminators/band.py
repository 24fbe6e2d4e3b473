"""Band-split magnitude discriminator, for mono audio."""

import operator

import flax.linen as nn
import jax.numpy as jnp

from audiovae_jax.discriminators.base import Discriminator, Output, require_audio
from audiovae_jax.discriminators.stack import chain
from audiovae_jax.models.layers import Dtype, WNConv2d
from audiovae_jax.ops import signal

# features, kernel size, stride
_LAYERS = ((32, 7, 2), (64, 5, 2), (128, 5, 2), (256, 5, 2), (256, 3, 1))
_LEAKY_SLOPE = 0.2


class BandSplitDiscriminator(Discriminator):
    """One conv stack per range of STFT bins. A logit is the average over its band.

    Attributes:
      n_fft, hop_length: lengths of the magnitude STFT in samples.
      band_ranges: `(first bin, bin after the last)`, one sub-discriminator for each.
      dtype: dtype of the convolutions; the STFT is float32.
    """

    n_fft: int = 2048
    hop_length: int = 512
    band_ranges: tuple[tuple[int, int], ...] = ((0, 128), (128, 256), (256, 512), (512, 1025))
    dtype: Dtype = jnp.float32

    stack_name = "band_discriminators"

    def discriminate(self, audio, known_maps=None) -> Output:
        require_audio(audio, 1, type(self).__name__)
        magnitudes = signal.magnitude(signal.stft(audio[..., 0], self.n_fft, self.hop_length), floor=1e-20)
        return self.each_view(jnp.swapaxes(magnitudes, 1, 2)[..., None], known_maps)

    def views(self):
        bins = self.n_fft // 2 + 1
        for low, high in self.band_ranges:
            if not 0 <= low < high <= bins:
                raise ValueError(f"band_ranges has ({low}, {high}), outside the {bins} bins of n_fft")
        return [operator.itemgetter((slice(None), slice(*band))) for band in self.band_ranges]

    def stack(self, name):
        return _BandStack(self.dtype, name=name)


class _BandStack(nn.Module):
    dtype: Dtype

    @nn.compact
    def __call__(self, x, known_maps=None):
        convs = [
            WNConv2d(
                features,
                kernel_size=(k, k),
                stride=(stride, stride),
                padding=(k // 2, k // 2),
                dtype=self.dtype,
                name=f"convs_{i}",
            )
            for i, (features, k, stride) in enumerate(_LAYERS)
        ]
        x, feature_maps = chain(convs, x, known_maps, _LEAKY_SLOPE)
        x = WNConv2d(1, kernel_size=(3, 3), padding=(1, 1), dtype=self.dtype, name="final_conv")(x)
        return jnp.mean(x, axis=(1, 2)), [*feature_maps, x]
