import numpy as np
import pytest

from audiovae_jax.data.audio import loudness


def _sine(rate, seconds=2.0, amplitude=1.0, channels=1):
    wave = amplitude * np.sin(2 * np.pi * 997 * np.arange(int(rate * seconds)) / rate)
    return np.repeat(wave[:, None], channels, axis=1).astype(np.float32)


@pytest.mark.parametrize("rate", [32000, 44100, 48000, 96000])
def test_the_standard_s_own_tone(rate):
    """BS.1770-4: a 997 Hz sine at full scale in one channel reads -3.01 LKFS, and 3 dB more in two."""
    assert loudness.integrated([_sine(rate)], rate) == pytest.approx(-3.01, abs=0.02)
    assert loudness.integrated([_sine(rate, channels=2)], rate) == pytest.approx(0.0, abs=0.02)
    assert loudness.integrated([_sine(rate, amplitude=0.1)], rate) == pytest.approx(-23.01, abs=0.02)


def test_quiet_parts_are_not_counted():
    loud, quiet = _sine(48000, 4.0), _sine(48000, 4.0, 1e-5)
    assert loudness.integrated([loud, quiet], 48000) == pytest.approx(loudness.integrated([loud], 48000), abs=1e-6)
    # 20 dB less is over the absolute gate and under the relative one.
    assert loudness.integrated([loud, _sine(48000, 4.0, 0.1)], 48000) == pytest.approx(-3.01, abs=0.02)
    assert loudness.integrated([quiet], 48000) is None
    assert loudness.integrated([_sine(48000, 0.3)], 48000) is None


def test_surround_weighs_more_and_the_lfe_nothing():
    def of(channel):
        audio = np.zeros((96000, 6), np.float32)
        audio[:, channel] = _sine(48000)[:, 0]
        return loudness.integrated([audio], 48000)

    assert of(4) - of(0) == pytest.approx(1.5, abs=1e-6)
    assert of(3) is None


def test_blocks_of_any_size_are_as_loud_as_the_whole():
    audio = 0.1 * np.random.default_rng(0).standard_normal((50_000, 2))
    meter = loudness.Meter(16000, 2)
    for start in range(0, len(audio), 777):
        meter.add(audio[start : start + 777])
    assert meter.integrated() == pytest.approx(loudness.integrated([audio], 16000), abs=1e-9)


def test_peaks_between_samples_are_found():
    """The standard's own case: a sine of a quarter of the rate, sampled 45 degrees from its peaks."""
    audio = np.sin(np.pi / 4 + np.pi / 2 * np.arange(4800))[:, None]
    assert np.abs(audio).max() == pytest.approx(0.5**0.5)
    whole, blocks = loudness.TruePeak(1), loudness.TruePeak(1)
    whole.add(audio)
    for start in range(0, len(audio), 7):
        blocks.add(audio[start : start + 7])
    # The standard allows 0.2 dB more and 0.4 dB less; its filter's own ripple is most of it. The beginning overshoots.
    steady = loudness.TruePeak(1)
    steady.add(audio * np.minimum(1, np.arange(4800) / 2400)[:, None])
    assert steady.decibels() == pytest.approx(0, abs=0.4)
    assert blocks.decibels() == pytest.approx(whole.decibels(), abs=1e-9)
    assert loudness.TruePeak(1).decibels() is None


def test_a_peak_is_that_of_an_exact_interpolation():
    rng = np.random.default_rng(0)
    spectrum = np.zeros(2049, complex)
    spectrum[1:800] = rng.standard_normal(799) + 1j * rng.standard_normal(799)
    audio = np.fft.irfft(spectrum)
    exact = np.abs(np.fft.irfft(np.pad(spectrum, (0, 4 * 2048 - 2048)), 4 * 4096) * 4).max()
    peak = loudness.TruePeak(1)
    peak.add(np.tile(audio, 3)[:, None])
    assert 20 * np.log10(exact) == pytest.approx(peak.decibels(), abs=0.4)


def test_loudness_as_pyloudnorm_has_it():
    pyloudnorm = pytest.importorskip("pyloudnorm")
    audio = 0.1 * np.random.default_rng(0).standard_normal((3 * 48000, 2))
    expected = pyloudnorm.Meter(48000, filter_class="DeMan").integrated_loudness(audio)
    assert loudness.integrated([audio], 48000) == pytest.approx(expected, abs=0.01)
