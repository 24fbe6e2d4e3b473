import dataclasses

import numpy as np
import pytest

from audiovae_jax.data.sets.catalog import Track
from audiovae_jax.data.survey import measures

RATE = 8000


@dataclasses.dataclass
class InMemory:
    samples: np.ndarray
    name: str = "some.wav"
    sample_rate: int = RATE
    speakers: tuple[str, ...] | None = None

    def __post_init__(self):
        self.frames, self.channels = self.samples.shape
        self.frames_read = 0

    def read(self, start, count):
        self.frames_read += count
        assert 0 <= start <= start + count <= self.frames
        return self.samples[start : start + count]


def _noise(seconds, channels=2, scale=0.1):
    return scale * np.random.default_rng(0).standard_normal((int(RATE * seconds), channels)).astype(np.float32)


def _measure(samples):
    return measures.measure(Track("some.wav", InMemory(samples)))


def test_silence_is_counted_in_time():
    audio = _noise(4.0)
    audio[RATE:] *= 10 ** (-70 / 20) / 0.1  # three of four seconds at -70 dBFS
    assert _measure(audio).silence == pytest.approx(0.75)
    audio[RATE:] *= 10 ** (20 / 20)
    assert _measure(audio).silence == 0.0
    # A shorter last block counts with its own length.
    assert _measure(np.concatenate([_noise(0.05), np.zeros((100, 2), np.float32)])).silence == pytest.approx(0.2)


def test_clips_are_runs_at_full_scale():
    audio = _noise(60.0, scale=0.05)
    audio[100:104, 0] = 1.0
    audio[200:203, 0] = 1.0  # a peak
    audio[-5:, 1] = -1.0
    found = _measure(audio)
    assert found.clips_per_minute == pytest.approx(2.0)
    assert found.peak == 1.0


def test_channels_that_are_the_same():
    audio = _noise(1.0)
    assert not _measure(audio).is_dual_mono
    assert _measure(np.repeat(audio[:, :1], 2, axis=1)).is_dual_mono
    assert not _measure(audio[:, :1]).is_dual_mono
    silent = _measure(np.zeros_like(audio))
    assert (silent.is_dual_mono, silent.silence, silent.loudness_lufs, silent.band_hz) == (False, 1.0, None, 0.0)


def test_where_a_spectrum_ends():
    audio = np.sin(2 * np.pi * 1000 * np.arange(4 * RATE) / RATE)[:, None].astype(np.float32)
    assert _measure(audio).band_hz == pytest.approx(1000, abs=10)
    assert _measure(_noise(4.0)).band_hz == pytest.approx(4000, abs=10)


def test_of_what_is_long_only_stretches_are_read():
    audio = InMemory(_noise(200.0, 1))
    found = measures.measure(Track("long.wav", audio))
    assert found.heard_seconds == 60.0
    assert found.seconds == 200.0
    assert audio.frames_read <= 61 * RATE + 4 * 8192
    audio = InMemory(_noise(60.0, 1))
    assert measures.measure(Track("minute.wav", audio)).heard_seconds == 60.0
