"""Multi-scale waveform discriminator (MelGAN, Kumar et al., 2019)."""

import flax.linen as nn
import jax.numpy as jnp

from audiovae_jax.discriminators.stack import Judge, Output, WaveformStack, each, gather, in_turn, require_audio
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


class MultiScaleDiscriminator(Judge):
    """Grouped 1-D convolutions over the waveform at several average-pooled scales.

    Attributes:
      scales: pooling factors, one sub-discriminator for each.
      in_channels: audio channels.
      dtype: what the convolutions compute in.
    """

    scales: tuple[int, ...] = (1, 2, 4)
    in_channels: int = 2
    dtype: Dtype = jnp.float32

    @nn.compact
    def judge(self, audio, known: list[list] | None = None) -> Output:
        require_audio(audio, self.in_channels, "MultiScaleDiscriminator")
        outputs = []
        for i, (scale, maps) in enumerate(zip(self.scales, each(known, len(self.scales)), strict=True)):
            stack = WaveformStack(_LAYERS, self.dtype, name=f"discriminators_{i}")
            outputs.append(stack(_average_pool(in_turn(audio, outputs, known), scale), maps))
        return gather(outputs)


def _average_pool(audio, scale):
    """`[B, T, C]` to `[B, T // scale, C]`."""
    b, t, c = audio.shape
    return jnp.mean(audio[:, : t // scale * scale].reshape(b, t // scale, scale, c), axis=2)
