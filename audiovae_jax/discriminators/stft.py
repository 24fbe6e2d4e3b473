"""Multi-scale complex-STFT discriminator (EnCodec, Défossez et al., 2022)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiovae_jax.discriminators.stack import (
    Judge,
    Output,
    SpectrogramStack,
    each,
    gather,
    in_turn,
    require_audio,
    resolutions,
)
from audiovae_jax.models.layers import Dtype
from audiovae_jax.ops import signal
from audiovae_jax.ops.interleaved import Interleaved


class MultiScaleSTFTDiscriminator(Judge):
    """One conv stack per STFT resolution, over real and imaginary parts as two channels.

    Each audio channel is judged alone, by the same weights: outputs come channel by channel, and
    within a channel scale by scale.

    Attributes:
      filters: channels of the first convolution.
      in_channels: audio channels.
      n_ffts: transform lengths in samples, one per scale.
      hop_lengths: samples between frames; None for a quarter of each FFT.
      win_lengths: Hann window lengths; None for the whole FFT.
      normalized: scale each STFT by `n_fft ** -0.5`.
      dtype: what the convolutions compute in; the STFT is float32.
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

    @nn.compact
    def judge(self, audio, known: list[list] | None = None) -> Output:
        require_audio(audio, self.in_channels, "MultiScaleSTFTDiscriminator")
        b, t, c = audio.shape
        # The channels share weights, so they ride in the batch.
        audio = jnp.moveaxis(audio, -1, 1).reshape(b * c, t)
        scales = resolutions(self.n_ffts, self.hop_lengths, self.win_lengths)
        outputs = []
        for i, ((n_fft, hop, win), maps) in enumerate(zip(scales, each(known, len(scales)), strict=True)):
            spectrum = signal.stft(in_turn(audio, outputs, known), n_fft, hop, win)
            if self.normalized:
                spectrum = spectrum * n_fft**-0.5
            image = jnp.stack([spectrum.real, spectrum.imag], axis=-1)
            stack = SpectrogramStack(self.filters, self.dtype, self.remat, name=f"discriminators_{i}")
            outputs.append(stack(image, maps and [x.array for x in maps]))
        return jax.tree.map(lambda x: Interleaved(x, c), gather(outputs))
