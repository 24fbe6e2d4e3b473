"""Band-split magnitude discriminator, for mono audio."""

import flax.linen as nn
import jax.numpy as jnp

from audiovae_jax.discriminators.stack import Judge, Output, chain, each, gather, in_turn, require_audio
from audiovae_jax.models.layers import Dtype, WNConv2d
from audiovae_jax.ops import signal

# features, kernel size, stride
_LAYERS = ((32, 7, 2), (64, 5, 2), (128, 5, 2), (256, 5, 2), (256, 3, 1))
_LEAKY_SLOPE = 0.2


class BandSplitDiscriminator(Judge):
    """One conv stack per range of STFT bins; a logit is the mean over its band.

    Attributes:
      n_fft, hop_length: of the magnitude STFT, in samples.
      band_ranges: `(first bin, bin after the last)`, one sub-discriminator for each.
      dtype: what the convolutions compute in; the STFT is float32.
    """

    n_fft: int = 2048
    hop_length: int = 512
    band_ranges: tuple[tuple[int, int], ...] = ((0, 128), (128, 256), (256, 512), (512, 1025))
    dtype: Dtype = jnp.float32

    @nn.compact
    def judge(self, audio, known: list[list] | None = None) -> Output:
        require_audio(audio, 1, "BandSplitDiscriminator")
        magnitudes = signal.magnitude(signal.stft(audio[..., 0], self.n_fft, self.hop_length), floor=1e-20)
        image = jnp.swapaxes(magnitudes, 1, 2)[..., None]  # [B, bins, frames, 1]
        outputs = []
        given = each(known, len(self.band_ranges))
        for i, ((low, high), maps) in enumerate(zip(self.band_ranges, given, strict=True)):
            if not 0 <= low < high <= image.shape[1]:
                raise ValueError(f"band_ranges has ({low}, {high}), outside the {image.shape[1]} bins of n_fft")
            stack = _BandStack(self.dtype, name=f"band_discriminators_{i}")
            outputs.append(stack(in_turn(image[:, low:high], outputs, known), maps))
        return gather(outputs)


class _BandStack(nn.Module):
    dtype: Dtype

    @nn.compact
    def __call__(self, x, known=None):
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
        x, feature_maps = chain(convs, x, known, _LEAKY_SLOPE)
        x = WNConv2d(1, kernel_size=(3, 3), padding=(1, 1), dtype=self.dtype, name="final_conv")(x)
        return jnp.mean(x, axis=(1, 2)), [*feature_maps, x]
