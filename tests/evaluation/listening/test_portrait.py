"""Pictures of signals: levels over time and frequency, independent of the blocks."""

import base64
import io

import numpy as np
import pytest
from matplotlib import image

from audiovae_jax.data.audio import stream
from audiovae_jax.evaluation.listening.portrait import Portrait

RATE = 16000


def portrait(audio, block=1000):
    made = Portrait(stream.of_array(audio, RATE))
    for start in range(0, len(audio), block):
        made.add(audio[start : start + block])
    return made


def pixels(made):
    return image.imread(io.BytesIO(base64.b64decode(made.spectrogram().partition(",")[2])))[..., :3].sum(axis=2)


@pytest.mark.parametrize("hertz", [500, 1000, 2000, 4000])
def test_a_tone_is_brightest_at_its_tick_of_the_mel_axis(hertz):
    tone = np.sin(2 * np.pi * hertz * np.arange(RATE) / RATE)[:, None].repeat(2, axis=1).astype(np.float32)
    made = portrait(tone)
    rows = pixels(made).mean(axis=1)[::-1]  # from the bottom
    height = dict(made.frequencies())[hertz]
    assert (rows.argmax() + 0.5) / len(rows) == pytest.approx(height, abs=0.01)
    assert rows.min() < 0.1 * rows.max()


def test_blocks_do_not_change_the_picture():
    audio = np.random.default_rng(0).standard_normal((3 * RATE, 2)).astype(np.float32)
    whole, parts = portrait(audio, len(audio)), portrait(audio, 777)
    assert (parts.peak, parts.wave(1.0)) == (whole.peak, whole.wave(1.0))
    assert parts.spectrogram() == whole.spectrogram()
    assert whole.peak == np.abs(audio).max()


def test_a_long_signal_has_no_larger_picture():
    sizes = {pixels(portrait(np.zeros((seconds * RATE, 1), np.float32), 1 << 16)).shape[1] for seconds in (60, 240)}
    assert max(sizes) < 1000


def test_the_difference_of_what_is_opposite_in_both_channels_is_not_dark():
    side = np.random.default_rng(1).standard_normal((RATE, 1)).astype(np.float32) * np.float32([1, -1])
    assert pixels(portrait(side)).mean() > 0.5


@pytest.mark.parametrize("length", [1, 100, 2047])
def test_a_signal_shorter_than_a_window_has_a_picture(length):
    made = portrait(np.full((length, 2), 0.5, np.float32))
    assert pixels(made).shape[1] == 1
    assert made.wave(0.5).startswith("M0 -500L")
