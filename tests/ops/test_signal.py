import jax
import jax.numpy as jnp
import librosa
import numpy as np
import pytest
import scipy.signal

from audiovae_jax.ops import k_weighting, signal


def test_frame_matches_slicing_for_hops_that_do_not_divide_the_frame():
    x = np.arange(100.0)
    frames = signal.frame(jnp.asarray(x), frame_length=24, hop_length=7)
    expected = np.stack([x[i : i + 24] for i in range(0, 100 - 24 + 1, 7)])
    np.testing.assert_array_equal(frames, expected)


def test_stft_of_a_sinusoid_peaks_at_its_bin_with_the_window_sum():
    n_fft, k = 256, 19
    x = np.cos(2 * np.pi * k * np.arange(4096) / n_fft)
    spectrum = np.abs(signal.stft(jnp.asarray(x), n_fft))
    middle = spectrum[8:-8]
    assert (middle.argmax(-1) == k).all()
    np.testing.assert_allclose(middle.max(-1), n_fft / 4, rtol=1e-4)  # a periodic Hann sums to n / 2


def test_stft_equals_scipy():
    x = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    ours = signal.stft(jnp.asarray(x), 512, 128, 300)
    padded = np.pad(x, 256, mode="reflect")
    window = np.pad(scipy.signal.get_window("hann", 300), (106, 106))
    expected = [np.fft.rfft(padded[i : i + 512] * window) for i in range(0, len(padded) - 511, 128)]
    np.testing.assert_allclose(ours, np.stack(expected), atol=2e-4)


def test_too_short_a_signal_is_named():
    with pytest.raises(ValueError, match="100 samples are too short for an FFT of 512"):
        signal.stft(jnp.zeros(100), 512)


def test_magnitude_has_a_finite_gradient_at_silence():
    grad = jax.grad(lambda x: signal.magnitude(signal.stft(x, 64)).sum())(jnp.zeros(256))
    assert np.isfinite(grad).all()


@pytest.mark.parametrize(("frequency", "decibels"), [(1000, 0.0), (100, -19.1), (10000, -2.5)])
def test_a_weighting_follows_the_standard(frequency, decibels):
    # IEC 61672-1, table 3; 101 taps resolve the low end coarsely.
    taps = signal.a_weighting_fir(44100)
    _, response = scipy.signal.freqz(taps, worN=[frequency], fs=44100)
    assert 20 * np.log10(np.abs(response[0])) == pytest.approx(decibels, abs=2.0)


def test_a_weight_is_the_fir_with_zero_padding():
    x = np.random.default_rng(1).standard_normal((2, 1000)).astype(np.float32)
    expected = [np.convolve(row, signal.a_weighting_fir(44100), mode="same") for row in x]
    np.testing.assert_allclose(signal.a_weight(jnp.asarray(x), 44100), expected, atol=1e-5)


@pytest.mark.parametrize("rate", [44100, 48000])
def test_k_weight_is_the_standards_recursive_filter(rate):
    x = np.random.default_rng(1).standard_normal((2, 3000)).astype(np.float32)
    expected = scipy.signal.sosfilt(k_weighting.sections(rate), x.astype(np.float64), axis=-1)
    np.testing.assert_allclose(signal.k_weight(jnp.asarray(x), rate), expected, atol=2e-5)


CQT = {"f_min": 110.0, "octaves": 5, "bins_per_octave": 12}


@pytest.mark.slow
def test_cqt_equals_librosa():
    x = np.random.default_rng(0).standard_normal(8192).astype(np.float32)
    ours = np.asarray(signal.cqt(jnp.asarray(x), 16000, 64, **CQT))
    theirs = librosa.cqt(
        x, sr=16000, hop_length=64, fmin=110.0, n_bins=60, bins_per_octave=12, sparsity=0, dtype=np.complex128
    ).T
    assert ours.shape == theirs.shape == (129, 60)
    # librosa resamples by a filter, and rounds the lengths of kernels at another rate.
    assert np.linalg.norm(ours - theirs) < 0.05 * np.linalg.norm(theirs)
    # In the highest octave nothing is resampled, and the kernels are librosa's.
    frequencies = 110.0 * 2.0 ** (np.arange(48, 60) / 12)
    kernels, lengths = librosa.filters.wavelet(freqs=frequencies, sr=16000, norm=1, dtype=np.complex128)
    half = kernels.shape[1] // 2
    padded = np.pad(x, half)
    frames = np.stack([padded[i * 64 : i * 64 + 2 * half] for i in range(129)])
    expected = frames @ kernels.conj().T * np.sqrt(lengths)
    np.testing.assert_allclose(ours[:, 48:], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("length", [700, 1024])
def test_cqt_of_a_tone_peaks_at_its_bin_in_each_octave(length):
    for octave in range(5):
        f = 110.0 * 2 ** (octave + 5 / 12)
        x = np.cos(2 * np.pi * f * np.arange(16 * length) / 16000)
        spectrum = np.abs(signal.cqt(jnp.asarray(x), 16000, 64, **CQT))
        assert (spectrum[40:-40].argmax(-1) == 12 * octave + 5).all()
        (size,), _ = librosa.filters.wavelet_lengths(freqs=np.array([f]), sr=16000, alpha=0.0577)
        np.testing.assert_allclose(spectrum[40:-40].max(-1), np.sqrt(size) / 2, rtol=0.02)


def test_a_cqt_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="needs a hop that is a multiple of 16, not 40"):
        signal.cqt(jnp.zeros(1024), 16000, 40, **CQT)
    with pytest.raises(ValueError, match="passes half the sample rate of 16000 Hz; use fewer"):
        signal.cqt(jnp.zeros(1024), 16000, 64, f_min=110.0, octaves=7)


def test_mel_filters_have_slaney_area():
    filters = signal.mel_filterbank(44100, 2048, 128)
    assert filters.shape == (1025, 128)
    widths = filters.sum(0) * 44100 / 2048
    np.testing.assert_allclose(widths[40:], 1.0, rtol=0.05)
