"""Pictures of audio: the same however it comes, and with what is in it."""

import numpy as np
import pytest

from audiovae_jax.evaluation import clips
from audiovae_jax.evaluation.clips import Portrait

RATE = 8000


def drawn(audio, cuts):
    """What is drawn of audio that comes in blocks."""
    portrait = Portrait(len(audio), RATE)
    for block in np.split(audio, np.sort(cuts).astype(int)):
        portrait.add(block)
    return portrait


@pytest.mark.parametrize("length", [1, 700, 1024, 5000, 100_000])  # in the last, windows lie apart
def test_a_picture_does_not_depend_on_the_blocks(length, monkeypatch):
    monkeypatch.setattr(clips, "_COLUMNS", 50)
    rng = np.random.default_rng(0)
    audio = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
    whole = drawn(audio, [])
    assert whole.peak == np.abs(audio).max()
    for cuts in ([0, length // 3, length // 3, length - 1], rng.integers(0, length, 40)):
        parts = drawn(audio, cuts)
        for name in ("_low", "_high", "_columns"):
            np.testing.assert_array_equal(getattr(parts, name), getattr(whole, name))


def test_what_is_shorter_than_a_window_is_drawn_too():
    audio = np.full((100, 1), 0.5, np.float32)
    assert drawn(audio, [50]).picture(1.0) == clips.picture(audio, RATE, 1.0)


def test_a_sine_of_full_scale_is_at_0_db_in_its_row_and_extremes_are_drawn():
    time = np.arange(100_000) / RATE
    audio = np.sin(2 * np.pi * 1000 * time, dtype=np.float32)[:, None]
    audio[70_000] = 3.0
    portrait = Portrait(len(audio), RATE)
    portrait.add(audio)
    levels = np.stack(portrait._columns)  # [windows, rows of two bins]
    quiet = levels[:100]
    assert (quiet.argmax(axis=1) == 1000 / (RATE / 1024) // 2).all()
    np.testing.assert_allclose(quiet.max(axis=1), 0, atol=1e-3)
    assert portrait._high.max() == portrait.peak == 3.0
    assert portrait._low.min() == pytest.approx(-1, abs=1e-3)
