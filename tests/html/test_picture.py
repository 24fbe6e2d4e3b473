import io

import numpy as np
import pytest
from PIL import Image

from audiovae_jax.html import picture

RATE = 16000


def _tone(hertz, seconds=0.5, amplitude=0.5):
    wave = amplitude * np.sin(2 * np.pi * hertz * np.arange(int(seconds * RATE)) / RATE)
    return np.stack([wave, wave], axis=1).astype(np.float32)


@pytest.mark.parametrize("hertz", [100, 440, 3000, 7000])
def test_a_tone_is_where_its_frequency_is_on_the_axis_and_as_loud_as_it_is(hertz):
    levels = picture.mel_levels(_tone(hertz), RATE)
    place = (levels.mean(axis=0).argmax() + 0.5) / levels.shape[1] * picture._mel(RATE / 2)
    width = RATE / picture._N_FFT + picture._hertz(place + 15) - picture._hertz(place)
    assert picture._hertz(place) == pytest.approx(hertz, abs=width)
    assert -30 < levels.max() < -6  # a sine of -6 dB full scale, as a mean over its band


def test_bands_contain_the_total_power():
    noise = np.random.default_rng(0).standard_normal((8 * RATE, 1)).astype(np.float32)
    levels = picture.mel_levels(noise, RATE)
    # White noise is alike in all bands, wide and narrow ones.
    mean = 10 * np.log10((10 ** (levels / 10)).mean(axis=0))
    assert np.abs(mean[2:-2] - np.median(mean)).max() < 1.5
    np.testing.assert_allclose(picture.mel_levels(10 * noise, RATE) - levels, 20.0, atol=0.01)


def test_the_difference_is_red_where_the_reconstruction_is_louder_and_blue_where_it_is_softer():
    noise = 0.1 * np.random.default_rng(0).standard_normal((RATE // 2, 1)).astype(np.float32)
    pictures = {
        gain: np.asarray(Image.open(io.BytesIO(picture.png(noise, gain * noise, RATE, title="t"))))
        for gain in (0.2, 1.0, 5.0)
    }
    third = len(pictures[1.0]) // 3

    def excess_of_red(gain):
        panel = pictures[gain][2 * third + 40 : -60, 80:-140].astype(float)
        return (panel[..., 0] - panel[..., 2]).mean()

    assert excess_of_red(0.2) < -5 < excess_of_red(1.0) < 5 < excess_of_red(5.0)
    assert pictures[1.0].dtype == np.uint8
    assert pictures[1.0].shape == (900, 900, 4)


@pytest.mark.parametrize("samples", [1, 100, 5000])
def test_silence_and_short_signals_have_a_picture_too(samples):
    silence = np.zeros((samples, 1), np.float32)
    assert np.isfinite(picture.mel_levels(silence, 44100)).all()
    assert picture.png(silence, silence, 44100).startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["$x_$.wav", "a$b_^c$.wav", "\\frac{$$.wav"])
def test_a_title_may_contain_any_characters_of_a_file_name(name):
    assert len(picture.png(_tone(440), _tone(440), RATE, title=f"step 3: {name}")) > 10_000
