"""Multi-period waveform discriminator (HiFi-GAN, Kong et al., 2020)."""

import flax.linen as nn
import jax.numpy as jnp

from audiovae_jax.discriminators.stack import Judge, Output, WaveformStack, each, gather, in_turn, require_audio
from audiovae_jax.models.layers import Dtype


class MultiPeriodDiscriminator(Judge):
    """Convolutions over the waveform folded at several periods.

    Attributes:
      periods: in samples, one sub-discriminator for each.
      in_channels: audio channels.
      channels: features of the convolutions; all but the last have stride 3.
      dtype: what the convolutions compute in.
    """

    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    in_channels: int = 2
    channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    dtype: Dtype = jnp.float32

    @nn.compact
    def judge(self, audio, known: list[list] | None = None) -> Output:
        require_audio(audio, self.in_channels, "MultiPeriodDiscriminator")
        # Torch's kernels are (taps, 1): a 1-D convolution along T / period, each phase an item.
        *strided, last = self.channels
        layers = (*((features, 5, 3, 1) for features in strided), (last, 5, 1, 1))
        outputs = []
        for i, (period, maps) in enumerate(zip(self.periods, each(known, len(self.periods)), strict=True)):
            stack = WaveformStack(layers, self.dtype, name=f"discriminators_{i}")
            outputs.append(stack(_fold(in_turn(audio, outputs, known), period), maps))
        return gather(outputs)


def _fold(audio, period):
    """`[B, T, C]` to `[B, period, ceil(T / period), C]`, reflect-padded at the end."""
    b, t, c = audio.shape
    audio = jnp.pad(audio, ((0, 0), (0, -t % period), (0, 0)), mode="reflect")
    return audio.reshape(b, -1, period, c).transpose(0, 2, 1, 3)
