"""Signal processing as plain functions: framing, STFT, CQT and filters.

All of it computes in float32, even if the networks use bfloat16, which is too coarse for log-magnitudes.
"""

import functools
import warnings

import jax.numpy as jnp
import numpy as np
from jax import lax

from audiovae_jax.ops import k_weighting

A_WEIGHTING_TAPS = 101


@functools.cache
def hann_window(win_length: int, n_fft: int) -> np.ndarray:
    """Periodic Hann window of `win_length`, centred in `n_fft` zeros: `[n_fft]`."""
    if win_length > n_fft:
        raise ValueError(f"win_length={win_length} is longer than n_fft={n_fft}; use at most {n_fft}")
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(win_length) / win_length)
    left = (n_fft - win_length) // 2
    return np.pad(window, (left, n_fft - win_length - left)).astype(np.float32)


def frame(x, frame_length: int, hop_length: int):
    """Cut `x: [..., T]` into overlapping frames.

    The result is `[..., 1 + (T - frame_length) // hop_length, frame_length]`. Frames are concatenated from whole hops.
    Gathering them by sample would make the gradient a scatter, which is slow on every backend.
    """
    *batch, length = x.shape
    n_frames = 1 + (length - frame_length) // hop_length
    if n_frames < 1:
        raise ValueError(f"{length} samples are shorter than a frame of {frame_length}")
    hops_per_frame = -(-frame_length // hop_length)
    n_hops = n_frames - 1 + hops_per_frame
    pad = n_hops * hop_length - length
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0)] * len(batch) + [(0, pad, 0)])  # pad < 0 cuts
    hops = x.reshape(*batch, n_hops, hop_length)
    frames = jnp.concatenate([hops[..., i : i + n_frames, :] for i in range(hops_per_frame)], axis=-1)
    return frames[..., :frame_length]


def stft(x, n_fft: int, hop_length: int | None = None, win_length: int | None = None):
    """Centred, reflect-padded and unnormalised STFT, like `torch.stft`.

    Args:
      x: `[..., T]` real signal, T > n_fft // 2.
      n_fft: transform length in samples.
      hop_length: samples between frames, default `n_fft // 4`.
      win_length: length of the periodic Hann window, default `n_fft`.

    Returns:
      Complex `[..., frames, bins]`, `frames = 1 + T // hop_length`, `bins = n_fft // 2 + 1`.

    Raises:
      ValueError: the signal is too short to be reflected.
    """
    hop_length = hop_length or n_fft // 4
    half = n_fft // 2
    if x.shape[-1] <= half:
        raise ValueError(
            f"{x.shape[-1]} samples are too short for an FFT of {n_fft}: reflect padding needs more than {half}"
        )
    x = x.astype(jnp.float32)
    x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(half, half)], mode="reflect")
    window = hann_window(win_length or n_fft, n_fft)
    return jnp.fft.rfft(frame(x, n_fft, hop_length) * window, axis=-1)


def magnitude(spectrum, floor: float = 1e-8):
    """`sqrt(max(re^2 + im^2, floor))`, whose gradient stays finite at silence."""
    return jnp.sqrt(jnp.maximum(jnp.square(spectrum.real) + jnp.square(spectrum.imag), floor))


@functools.cache
def mel_filterbank(
    sample_rate: int, n_fft: int, n_mels: int, f_min: float = 0.0, f_max: float | None = None
) -> np.ndarray:
    """Slaney-scale, area-normalised mel filters `[bins, n_mels]`.

    They are those of `librosa.filters.mel`.
    """
    import librosa  # not at the top: it loads numba, which most users of this package never need

    with warnings.catch_warnings():
        # The published Mel-STFT discriminator has empty filters (128 mels at n_fft 1024) on purpose.
        warnings.filterwarnings("ignore", message="Empty filters detected")
        filters = librosa.filters.mel(sr=sample_rate, n_fft=n_fft, n_mels=n_mels, fmin=f_min, fmax=f_max)
    return np.ascontiguousarray(filters.T, dtype=np.float32)


def mel_spectrogram(magnitudes, filters):
    """Apply `filters: [bins, n_mels]` to `magnitudes: [..., frames, bins]`."""
    return jnp.matmul(magnitudes, filters, precision=lax.Precision.HIGHEST)


def cqt(x, sample_rate: int, hop_length: int, *, f_min: float = 32.70, octaves: int = 9, bins_per_octave: int = 24):
    """Constant-Q transform with centred frames and zero padding.

    `librosa.cqt` computes the same. All octaves use the kernels of the highest one, as direct strided convolutions.
    Each octave below is computed at half the rate of the one above (Schörkhuber and Klapuri, 2010). To halve the rate,
    the spectrum of the whole signal is cut. This removes everything that would alias.

    Args:
      x: `[..., T]` real signal.
      sample_rate: in Hz.
      hop_length: samples between frames, a multiple of `2 ** (octaves - 1)`.
      f_min: centre frequency of the lowest bin in Hz.
      octaves: number of octaves above `f_min`.
      bins_per_octave: bins in each octave.

    Returns:
      Complex64 `[..., frames, octaves * bins_per_octave]`, `frames = 1 + T // hop_length`, lowest bin first.

    Raises:
      ValueError: the hop is not such a multiple, or the highest bin reaches half the sample rate.
    """
    if hop_length % 2 ** (octaves - 1):
        step = 2 ** (octaves - 1)
        raise ValueError(f"a CQT of {octaves} octaves needs a hop that is a multiple of {step}, not {hop_length}")
    kernels, scales = _cqt_kernels(sample_rate, f_min, octaves, bins_per_octave)
    *batch, length = x.shape
    frames, taps = 1 + length // hop_length, kernels.shape[0]
    n_fft = _fast_length(length, 2**octaves)
    spectrum = jnp.fft.rfft(x.reshape(-1, length).astype(jnp.float32), n_fft, axis=-1)
    parts = []
    for octave in range(octaves):  # from the highest
        rate = 2**octave
        slow = jnp.fft.irfft(spectrum[:, : n_fft // rate // 2 + 1], n_fft // rate, axis=-1) / rate
        hop = hop_length // rate
        right = (frames - 1) * hop + taps - taps // 2 - slow.shape[-1]
        slow = lax.pad(slow, jnp.float32(0), [(0, 0, 0), (taps // 2, right, 0)])  # right < 0 cuts
        parts.append(
            lax.conv_general_dilated(
                slow[..., None], kernels, (hop,), "VALID", dimension_numbers=("NWC", "WIO", "NWC"),
                precision=lax.Precision.HIGHEST,
            )
        )  # fmt: skip
    real, imaginary = (
        jnp.concatenate([p[..., half] for p in reversed(parts)], axis=-1) * scales
        for half in (slice(bins_per_octave), slice(bins_per_octave, None))
    )
    return lax.complex(real, imaginary).reshape(*batch, frames, octaves * bins_per_octave)


@functools.cache
def _cqt_kernels(sample_rate, f_min, octaves, bins_per_octave):
    """Return `(kernels [taps, 1, 2 * bins], scales [octaves * bins])` of a CQT.

    The kernels are the real and imaginary parts of the highest octave's. Their magnitudes sum to 1. `scales` are the
    square roots of the lengths in samples of the kernels of all octaves.
    """
    import librosa

    frequencies = f_min * 2.0 ** (np.arange(octaves * bins_per_octave) / bins_per_octave)
    if frequencies[-1] * 2 ** (1 / bins_per_octave) > sample_rate / 2:
        raise ValueError(
            f"a CQT of {octaves} octaves from {f_min:g} Hz passes half the sample rate of {sample_rate} Hz; use fewer"
        )
    lengths, _ = librosa.filters.wavelet_lengths(freqs=frequencies, sr=sample_rate)
    kernels, _ = librosa.filters.wavelet(
        freqs=frequencies[-bins_per_octave:], sr=sample_rate, norm=1, dtype=np.complex128
    )
    # Their phase is 0 in the middle of an even number of taps. Padding is cut down to the longest.
    middle, half = kernels.shape[1] // 2, int(np.ceil(lengths[-bins_per_octave] / 2))
    kernels = kernels[:, middle - half : middle + half]
    kernels = np.concatenate([kernels.real, -kernels.imag]).T[:, None]  # conjugates
    return kernels.astype(np.float32), np.sqrt(lengths).astype(np.float32)


@functools.cache
def a_weighting_fir(sample_rate: int) -> np.ndarray:
    """A-weighting (IEC 61672-1) as a linear-phase FIR of 101 taps.

    The analogue prototype goes through the bilinear transform, and its magnitude is fitted
    by least squares on 512 points (Steinmetz and Reiss, auraloss, 2020).
    """
    import scipy.signal

    f1, f2, f3, f4, gain_db = 20.598997, 107.65265, 737.86223, 12194.217, 1.9997
    numerator = [(2 * np.pi * f4) ** 2 * 10 ** (gain_db / 20), 0, 0, 0, 0]
    denominator = np.polymul([1, 4 * np.pi * f4, (2 * np.pi * f4) ** 2], [1, 4 * np.pi * f1, (2 * np.pi * f1) ** 2])
    denominator = np.polymul(np.polymul(denominator, [1, 2 * np.pi * f3]), [1, 2 * np.pi * f2])
    frequencies, response = scipy.signal.freqz(
        *scipy.signal.bilinear(numerator, denominator, fs=sample_rate), worN=512, fs=sample_rate
    )
    taps = scipy.signal.firls(A_WEIGHTING_TAPS, frequencies, np.abs(response), fs=sample_rate)
    return taps.astype(np.float32)


def a_weight(x, sample_rate: int):
    """Filter `x: [..., T]` with the A-weighting FIR; zero padding keeps the length."""
    return _fir_same(x.astype(jnp.float32), a_weighting_fir(sample_rate))


def k_weight(x, sample_rate: int):
    """Filter `x: [..., T]` with the K weighting of ITU-R BS.1770.

    The initial state is zero. The recursive filters are applied as a product of spectra. The zeros that are appended
    are longer than their decay.
    """
    length = x.shape[-1]
    n_fft = _fast_length(length + sample_rate // 10)
    spectrum = jnp.fft.rfft(x.astype(jnp.float32), n_fft, axis=-1)
    return jnp.fft.irfft(spectrum * _k_weighting_response(sample_rate, n_fft), n_fft, axis=-1)[..., :length]


@functools.cache
def _k_weighting_response(sample_rate: int, n_fft: int) -> np.ndarray:
    import scipy.signal

    bins = 2 * np.pi * np.arange(n_fft // 2 + 1) / n_fft
    return scipy.signal.sosfreqz(k_weighting.sections(sample_rate), bins)[1].astype(np.complex64)


def _fast_length(least: int, multiple: int = 1) -> int:
    """Return the length of a fast FFT, a multiple of `multiple`.

    It is at least `least`, and its other factors are small.
    """
    import scipy.fft

    return multiple * scipy.fft.next_fast_len(-(-least // multiple), real=True)


def _fir_same(x, taps: np.ndarray, block: int = 128):
    # A one-channel convolution uses one lane of a matrix unit. Frames times a Toeplitz matrix use all of them.
    length, half = x.shape[-1], (len(taps) - 1) // 2
    n_blocks = -(-length // block)
    padding = [(0, 0)] * (x.ndim - 1) + [(half, n_blocks * block - length + half)]
    frames = frame(jnp.pad(x, padding), block + 2 * half, block)
    toeplitz = np.zeros((block + 2 * half, block), np.float32)
    for i in range(block):
        toeplitz[i : i + len(taps), i] = taps
    y = jnp.matmul(frames, toeplitz, precision=lax.Precision.HIGHEST)
    return y.reshape(*x.shape[:-1], n_blocks * block)[..., :length]
