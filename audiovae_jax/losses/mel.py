"""Distances on mel spectrograms."""

import jax.numpy as jnp

from audiovae_jax.errors import require_range
from audiovae_jax.losses import spectral
from audiovae_jax.ops import signal


def multi_scale_mel(
    *,
    prediction,
    target,
    fft_sizes=(2048, 1024, 512),
    hop_sizes=None,
    win_lengths=None,
    n_mels=(128, 64, 32),
    sample_rate=44100,
    w_sc=1.0,
    w_log_mag=1.0,
    convergence="item",
):
    """Average spectral convergence and log distance of mel magnitudes over scales.

    Args:
      prediction, target: `[B, T, C]` audio; each channel is a separate item.
      fft_sizes: FFT lengths in samples.
      hop_sizes: hop lengths in samples; None for a quarter of each FFT.
      win_lengths: Hann window lengths in samples; None for the FFT length.
      n_mels: number of mel bands (Slaney), one per FFT.
      sample_rate: in Hz.
      w_sc: weight of the spectral convergence.
      w_log_mag: weight of the mean `|log X - log Y|`.
      convergence: "item" computes one ratio per item, so the loss is independent of how a batch is split over
        devices. "batch" computes one ratio over the whole batch, as auraloss 0.4 does.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: the lists differ in length, or a mel band contains no FFT bin.
    """
    prediction, target = spectral.items(prediction, target)
    spectral.require_weights(w_sc=w_sc, w_log_mag=w_log_mag)
    require_range("sample_rate", sample_rate, above=0)
    resolutions = spectral.stft_resolutions(fft_sizes, hop_sizes, win_lengths)
    if len(n_mels) != len(resolutions):
        raise ValueError(f"n_mels has {len(n_mels)} numbers for {len(resolutions)} fft_sizes; give one for each")
    total = 0.0
    for (n_fft, hop_length, win_length), mels in zip(resolutions, n_mels, strict=True):
        filters = signal.mel_filterbank(sample_rate, n_fft, mels)
        empty = int((filters.sum(0) == 0).sum())
        if empty:
            # The logarithm of an empty band is -inf and its gradient is NaN.
            raise ValueError(
                f"n_mels={mels} at n_fft={n_fft} leaves {empty} mel bands without a bin; use fewer mels or a longer FFT"
            )
        x, y = (
            signal.mel_spectrogram(signal.magnitude(signal.stft(a, n_fft, hop_length, win_length)), filters)
            for a in (prediction, target)
        )
        if w_sc:
            total += w_sc * spectral.spectral_convergence(x, y, convergence=convergence)
        if w_log_mag:
            total += w_log_mag * jnp.mean(jnp.abs(jnp.log(x) - jnp.log(y)))
    return jnp.asarray(total / len(resolutions), jnp.float32)
