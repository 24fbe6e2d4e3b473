"""Multi-scale complex-STFT discriminator (EnCodec, Défossez et al., 2022)."""

import flax.linen as nn
import jax.numpy as jnp

from audiovae_jax.discriminators.stack import Output, SpectrogramStack, require_audio, resolutions
from audiovae_jax.models.layers import Dtype
from audiovae_jax.ops import signal


class MultiScaleSTFTDiscriminator(nn.Module):
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
    """

    filters: int = 32
    in_channels: int = 2
    n_ffts: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    hop_lengths: tuple[int, ...] | None = None
    win_lengths: tuple[int, ...] | None = None
    normalized: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, audio) -> Output:
        require_audio(audio, self.in_channels, "MultiScaleSTFTDiscriminator")
        b, t, c = audio.shape
        # The channels share weights, so they ride in the batch.
        audio = jnp.moveaxis(audio, -1, 0).reshape(c * b, t)
        scales = []
        for i, (n_fft, hop, win) in enumerate(resolutions(self.n_ffts, self.hop_lengths, self.win_lengths)):
            spectrum = signal.stft(audio, n_fft, hop, win)
            if self.normalized:
                spectrum = spectrum * n_fft**-0.5
            image = jnp.stack([spectrum.real, spectrum.imag], axis=-1)
            scales.append(SpectrogramStack(self.filters, jnp.dtype(self.dtype), name=f"discriminators_{i}")(image))
        # Split, not sliced: the gradient of a split joins, that of slices pads each and adds them up.
        scales = [(jnp.split(logits, c), [jnp.split(x, c) for x in maps]) for logits, maps in scales]
        logits = [scale_logits[channel] for channel in range(c) for scale_logits, _ in scales]
        feature_maps = [[maps[channel] for maps in scale_maps] for channel in range(c) for _, scale_maps in scales]
        return logits, feature_maps
