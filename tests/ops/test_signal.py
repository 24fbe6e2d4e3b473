import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from audiovae_jax.ops import signal


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


def test_mel_filters_have_slaney_area():
    filters = signal.mel_filterbank(44100, 2048, 128)
    assert filters.shape == (1025, 128)
    widths = filters.sum(0) * 44100 / 2048
    np.testing.assert_allclose(widths[40:], 1.0, rtol=0.05)
