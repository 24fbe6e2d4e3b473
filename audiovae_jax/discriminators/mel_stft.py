"""Multi-scale discriminator on log-mel spectrograms."""

import flax.linen as nn
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


class MultiScaleMelSTFTDiscriminator(Judge):
    """One conv stack per resolution, over `log(mel + 1e-5)` of all audio channels together.

    Attributes:
      filters: channels of the first convolution.
      in_channels: audio channels.
      n_ffts: transform lengths in samples, one per scale.
      hop_lengths: samples between frames; None for a quarter of each FFT.
      win_lengths: Hann window lengths; None for the whole FFT.
      n_mels: mel bands (Slaney scale and norm), one number per scale.
      sample_rate: in Hz.
      f_min, f_max: the bands' range in Hz; None for half the sample rate.
      dtype: what the convolutions compute in; the spectrogram is float32.
      remat: see `SpectrogramStack`.
    """

    filters: int = 32
    in_channels: int = 2
    n_ffts: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    hop_lengths: tuple[int, ...] | None = None
    win_lengths: tuple[int, ...] | None = None
    n_mels: tuple[int, ...] = (128, 128, 80, 64, 32)
    sample_rate: int = 44100
    f_min: float = 0.0
    f_max: float | None = None
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def judge(self, audio, known: list[list] | None = None) -> Output:
        require_audio(audio, self.in_channels, "MultiScaleMelSTFTDiscriminator")
        channels = jnp.moveaxis(audio, -1, 1)
        scales = resolutions(self.n_ffts, self.hop_lengths, self.win_lengths)
        if len(self.n_mels) != len(scales):
            raise ValueError(f"one n_mels per n_fft is needed, but there are {len(self.n_mels)} for {len(scales)}")
        outputs = []
        given = each(known, len(scales))
        for i, ((n_fft, hop, win), mels, maps) in enumerate(zip(scales, self.n_mels, given, strict=True)):
            filters = signal.mel_filterbank(self.sample_rate, n_fft, mels, self.f_min, self.f_max)
            magnitudes = signal.magnitude(
                signal.stft(in_turn(channels, outputs, known), n_fft, hop, win), floor=_POWER_FLOOR
            )
            image = jnp.log(signal.mel_spectrogram(magnitudes, filters) + 1e-5)
            stack = SpectrogramStack(self.filters, self.dtype, self.remat, name=f"discriminators_{i}")
            outputs.append(stack(jnp.moveaxis(image, 1, -1), maps))
        return gather(outputs)


# Far below anything audible: it only keeps the gradient of |STFT| finite at digital silence.
_POWER_FLOOR = 1e-20
