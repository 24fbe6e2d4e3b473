"""Multi-scale discriminator on log-mel spectrograms."""

import functools

import jax.numpy as jnp

from audiovae_jax.discriminators.base import Discriminator
from audiovae_jax.discriminators.stack import SpectrogramStack, resolutions
from audiovae_jax.models.layers import Dtype
from audiovae_jax.ops import signal

# Far below audibility. It only keeps the gradient of |STFT| finite at digital silence.
_POWER_FLOOR = 1e-20


class MultiScaleMelSTFTDiscriminator(Discriminator):
    """One conv stack per resolution, over `log(mel + 1e-5)` of all audio channels.

    Attributes:
      filters: output channels of the first convolution.
      in_channels: number of audio channels.
      n_ffts: FFT lengths in samples, one per scale.
      hop_lengths: hop lengths in samples; None for a quarter of each FFT.
      win_lengths: Hann window lengths in samples; None for the FFT length.
      n_mels: number of mel bands (Slaney scale and norm), one per scale.
      sample_rate: in Hz.
      f_min, f_max: frequency range of the mel bands in Hz; `f_max=None` for half the sample rate.
      dtype: dtype of the convolutions; the spectrogram is float32.
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

    def views(self):
        scales = resolutions(self.n_ffts, self.hop_lengths, self.win_lengths)
        if len(self.n_mels) != len(scales):
            raise ValueError(f"one n_mels per n_fft is needed, but there are {len(self.n_mels)} for {len(scales)}")
        return [functools.partial(self._image, scale=s, n_mels=n) for s, n in zip(scales, self.n_mels, strict=True)]

    def _image(self, audio, scale, n_mels):
        spectrum = signal.stft(jnp.moveaxis(audio, -1, 1), *scale)
        filters = signal.mel_filterbank(self.sample_rate, scale[0], n_mels, self.f_min, self.f_max)
        mel = signal.mel_spectrogram(signal.magnitude(spectrum, floor=_POWER_FLOOR), filters)
        return jnp.moveaxis(jnp.log(mel + 1e-5), 1, -1)

    def stack(self, name):
        return SpectrogramStack(self.filters, self.dtype, self.remat, name=name)
