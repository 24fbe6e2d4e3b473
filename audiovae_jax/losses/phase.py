"""Distances of phase derivatives, and of the correlation between stereo channels.

Both are terms of εar-VAE (arXiv 2509.14912, 2025). Phase derivatives are compared as in Ai and Ling, "Neural speech
phase prediction based on parallel estimation architecture and anti-wrapping losses", 2023.
"""

import jax
import jax.numpy as jnp

from audiovae_jax.errors import require_range
from audiovae_jax.losses import spectral
from audiovae_jax.ops import signal

_MIN_POWER = 1e-8  # STFT bins below have no phase
_MIN_PRODUCT = 1e-12  # squared magnitude; a smaller product of unit phases counts as silent


def phase_derivatives(
    *,
    prediction,
    target,
    fft_sizes=(2048, 1024, 512),
    hop_sizes=None,
    win_lengths=None,
    w_frequency=1.0,
    w_delay=1.0,
    magnitude_weighted=True,
):
    """Average distances of instantaneous frequency and group delay over resolutions.

    Instantaneous frequency is the difference of STFT phases from one frame to the next. Group delay is the negative
    difference from one bin to the next. The distance of two differences is wrapped: it lies between 0 and pi.

    Args:
      prediction, target: `[B, T, C]` audio; each channel is a separate item.
      fft_sizes: FFT lengths in samples.
      hop_sizes: hop lengths in samples; None for a quarter of each FFT.
      win_lengths: Hann window lengths in samples; None for the FFT length.
      w_frequency: weight of the instantaneous frequency, in radians per hop.
      w_delay: weight of the group delay, in radians per bin.
      magnitude_weighted: if True, the weight of a distance is the smallest magnitude that it involves, divided by the
        item's sum of target magnitudes. The gradient is then bounded where the prediction is silent. If False, all
        weights are equal, as in Ai and Ling. Silent bins have no distance.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: shapes differ, lists differ in length, or the audio is shorter than an FFT allows.
    """
    prediction, target = spectral.items(prediction, target)
    spectral.require_weights(w_frequency=w_frequency, w_delay=w_delay)
    resolutions = spectral.stft_resolutions(fft_sizes, hop_sizes, win_lengths)
    total = 0.0
    for resolution in resolutions:
        x, y = (signal.stft(audio, *resolution) for audio in (prediction, target))
        if w_frequency:
            total += w_frequency * _distance_of_differences(x, y, 1, magnitude_weighted)
        if w_delay:
            total += w_delay * _distance_of_differences(x, y, 2, magnitude_weighted)
    return jnp.asarray(total / len(resolutions), jnp.float32)


def _distance_of_differences(x, y, axis, magnitude_weighted):
    """Average the wrapped distance of phase differences along an axis.

    `x` and `y` are spectra `[N, frames, bins]`.
    """
    x_size, y_size = signal.magnitude(x, _MIN_POWER), signal.magnitude(y, _MIN_POWER)
    # Phases of differences are products with conjugates, so no phase has to be unwrapped.
    product = _difference(x / x_size, axis) * jnp.conj(_difference(y / y_size, axis))
    sounds = jnp.square(product.real) + jnp.square(product.imag) > _MIN_PRODUCT
    distance = jnp.abs(jnp.arctan2(jnp.where(sounds, product.imag, 0.0), jnp.where(sounds, product.real, 1.0)))
    if not magnitude_weighted:
        return jnp.mean(distance)
    smallest = jax.lax.stop_gradient(_pairwise(jnp.minimum, jnp.minimum(x_size, y_size), axis))
    total = jnp.sum(_pairwise(jnp.minimum, y_size, axis), axis=(1, 2))
    return jnp.mean(jnp.sum(smallest * distance, axis=(1, 2)) / total)


def _difference(phases, axis):
    return _pairwise(lambda before, after: after * jnp.conj(before), phases, axis)


def _pairwise(fn, x, axis):
    length = x.shape[axis]
    return fn(jax.lax.slice_in_dim(x, 0, length - 1, axis=axis), jax.lax.slice_in_dim(x, 1, length, axis=axis))


def stereo_correlation(*, prediction, target, n_fft=2048, hop_length=None, n_mels=32, sample_rate=44100):
    """Average the error of the channels' correlation over mel bands and frames.

    The correlation is the real part of the cross spectrum of left and right in a band, divided by the root of the
    product of their powers. It is 1 for a centred source, and -1 if a channel is inverted. Levels do not affect it.

    Args:
      prediction, target: `[B, T, 2]` audio.
      n_fft: FFT length in samples.
      hop_length: in samples; None for a quarter of the FFT.
      n_mels: number of mel bands (Slaney); 1 for the whole spectrum.
      sample_rate: in Hz.

    Returns:
      A float32 scalar from 0 to 2. The weight of a band in a frame is the geometric mean of its channels' powers in the
      quieter of both signals. It is divided by the item's average power of the target's channels.

    Raises:
      ValueError: the audio is not stereo, or shorter than the FFT allows.
    """
    spectral.require_stereo("stereo_correlation", prediction, target)
    require_range("sample_rate", sample_rate, above=0)
    (resolution,) = spectral.stft_resolutions((n_fft,), hop_length and (hop_length,), None)
    bands = signal.mel_filterbank(sample_rate, n_fft, n_mels) if n_mels > 1 else jnp.ones((n_fft // 2 + 1, 1))
    x, y = (signal.stft(jnp.moveaxis(audio, -1, 0), *resolution) for audio in (prediction, target))
    correlation, size, _ = _correlation(x, bands)
    wanted, wanted_size, power = _correlation(y, bands)
    weight = jax.lax.stop_gradient(jnp.minimum(size, wanted_size))
    return jnp.mean(jnp.sum(weight * jnp.abs(correlation - wanted), axis=(1, 2)) / jnp.sum(power, axis=(1, 2)))


def _correlation(spectra, bands):
    """Return the correlation of two channels, and two means of their powers.

    The means are the geometric and the arithmetic one. All are `[B, frames, bands]`, of `spectra: [2, B, frames,
    bins]`.
    """
    left, right = spectra
    cross = signal.mel_spectrogram(left.real * right.real + left.imag * right.imag, bands)
    powers = signal.mel_spectrogram(jnp.square(spectra.real) + jnp.square(spectra.imag), bands)
    powers = jnp.maximum(powers, _MIN_POWER)
    size = jnp.sqrt(powers[0]) * jnp.sqrt(powers[1])
    return cross / size, size, jnp.mean(powers, axis=0)
