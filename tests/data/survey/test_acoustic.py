"""Acoustic fingerprints: alike for encodings of one recording, and not for others."""

import dataclasses
import json

import numpy as np
import pytest
import soundfile

from audiovae_jax.data.audio import audio_file, synthesis
from audiovae_jax.data.survey import acoustic
from audiovae_jax.data.survey.acoustic import Fingerprint

RATE = 22050
SECONDS = 14
ENCODINGS = {
    "flac": {"format": "FLAC"},
    "mp3": {"format": "MP3", "compression_level": 0.5},
    "ogg": {"format": "OGG", "compression_level": 0.5},
}


@dataclasses.dataclass(frozen=True)
class Samples:
    """Audio in memory."""

    audio: np.ndarray
    sample_rate: int = RATE

    @property
    def frames(self):
        return len(self.audio)

    @property
    def channels(self):
        return self.audio.shape[1]

    name = "samples"

    def read(self, start, count):
        assert 0 <= start <= start + count <= self.frames
        return self.audio[start : start + count].astype(np.float32)


def _music(seed, seconds=SECONDS, channels=2):
    return synthesis.music(np.random.default_rng(seed), round(seconds * RATE), RATE, channels)


def _print(audio, rate=RATE):
    return acoustic.fingerprint(Samples(audio, rate))


@pytest.fixture(scope="module")
def prints():
    return [_print(_music(seed)) for seed in range(6)]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_encodings_of_a_recording_are_found_among_others(tmp_path, prints, encoding):
    path = tmp_path / f"a.{encoding}"
    soundfile.write(path, _music(3), RATE, **ENCODINGS[encoding])
    encoded, rate = soundfile.read(path, dtype="float32", always_2d=True)
    assert acoustic.matches([*prints, _print(encoded, rate)]) == [(3, 6)]


def test_different_recordings_are_far_from_each_other(prints):
    errors = [acoustic.error(a, b) for i, one in enumerate(prints) for other in prints[:i]
              for a, b in zip(one.stretches, other.stretches, strict=True)]  # fmt: skip
    assert min(errors) > 0.35
    assert not acoustic.matches(prints)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x * 0.05,
        lambda x: -x,
        lambda x: x.mean(axis=1, keepdims=True),
        lambda x: x[300:],  # 14 ms, as a decoder that does not remove an encoder's delay
        lambda x: np.pad(x, ((RATE // 3, 0), (0, 0))),
        lambda x: x + np.random.default_rng(0).normal(0, 2e-3, x.shape),
    ],
    ids=["quieter", "inverted", "mono", "shifted", "leading silence", "noise"],
)
def test_changes_that_leave_the_recording_the_same(prints, change):
    assert acoustic.is_same(prints[1], _print(change(_music(1))))
    assert not acoustic.is_same(prints[2], _print(change(_music(1))))


def test_another_sample_rate_is_the_same_recording(prints):
    assert acoustic.is_same(prints[0], _print(audio_file.resample(_music(0), RATE, 44100), 44100))


def test_silence_matches_nothing():
    silent = [_print(np.zeros((SECONDS * RATE, 1))), _print(np.zeros((SECONDS * RATE, 2)))]
    assert [each.stretches for each in silent] == [(), ()]
    nearly = [_print(np.random.default_rng(i).normal(0, 1e-5, (SECONDS * RATE, 1))) for i in range(2)]
    assert not acoustic.matches([*silent, *nearly])


def test_short_sounds_match_nothing():
    assert not acoustic.matches([_print(_music(0, seconds)) for seconds in (0.1, 1.0, 1.0, 2.0, 2.0)])


def test_pieces_over_one_drum_loop_are_different():
    rng = np.random.default_rng(0)
    bar = np.zeros(2 * RATE)
    for beat in range(8):
        bar[beat * RATE // 4 :][:2000] += rng.normal(0, 0.3, 2000) * np.exp(-np.arange(2000) / 400)
    drums = np.tile(bar, 9)[:, None]
    pieces = [drums + 0.7 * _music(seed, 18, channels=1) for seed in (1, 2)]
    assert not acoustic.matches([_print(piece) for piece in pieces])
    # They begin with the same bars, and go on with other music.
    intros = [np.concatenate([drums[: 6 * RATE], piece[6 * RATE :]]) for piece in pieces]
    assert not acoustic.matches([_print(piece) for piece in intros])
    # A loop's copy is found, though its words repeat.
    assert acoustic.matches([_print(drums), _print(0.5 * drums[200:])]) == [(0, 1)]


def test_a_longer_version_is_another_recording(prints):
    assert not acoustic.is_same(prints[4], _print(np.concatenate([_music(4), _music(5, 3)])))


def test_many_copies_are_all_found():
    audio = _music(0)
    of_one = [_print(audio[i * 20 :]) for i in range(20)]
    parents = list(range(20))
    for i, j in acoustic.matches(of_one):
        parents[j] = min(parents[j], parents[i])
    assert set(parents) == {0}


def test_a_fingerprint_survives_json(prints):
    again = Fingerprint.from_json(json.loads(json.dumps(prints[0].to_json())))
    assert again.seconds == prints[0].seconds
    for words, others in zip(again.stretches, prints[0].stretches, strict=True):
        np.testing.assert_array_equal(words, others)


def test_words_of_a_tone_that_rises():
    """The energy moves from each band to the next higher one, so both signs occur and silence has none."""
    t = np.arange(8 * RATE) / RATE
    rising = np.sin(2 * np.pi * (300 * t + 100 * t**2))[:, None]
    assert not acoustic.is_same(_print(rising), _print(rising[::-1]))
    assert acoustic.error(*(_print(each).stretches[0] for each in (rising, rising))) == 0
