"""Crops by number: a record is a function of (seed, index) alone, so a run's data needs no state.

Random numbers come from counter-based generators keyed by the record, so that neither threads nor
the number of hosts change what a step sees.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from audiovae_jax.data import audio_file, deadline, synthesis
from audiovae_jax.data.remote import UnreachableError
from audiovae_jax.datasets.catalog import Track
from audiovae_jax.errors import DataError
from audiovae_jax.feeding.augment import Augment
from audiovae_jax.feeding.health import Health

_ATTEMPTS = 16
_QUIET = 1e-3  # a crop whose peak is below -60 dBFS is left as quiet as it is
# Keys of the generators' streams, which the run's seed must not collide with.
_TRAIN_STREAM, _VALIDATION_STREAM, _AUGMENT_STREAM = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class CropFormat:
    """What a crop is: `[length, channels]` float32 at `sample_rate` Hz.

    Attributes:
      length: samples.
      sample_rate: in Hz.
      channels: of the result.
      peak_normalize: to a peak of 1, unless it is all but silent.
      loop: fill up what is shorter by repeating it; else with zeros.
      min_loudness_db: training crops whose RMS is lower, in dBFS, are drawn anew; None takes all.
    """

    length: int
    sample_rate: int
    channels: int
    peak_normalize: bool = True
    loop: bool = False
    min_loudness_db: float | None = None


class Generated:
    """The built-in generator's endless music, as a track's audio."""

    name = "the built-in generator"
    frames, sample_rate, channels = 3600 * 44100, 44100, 2

    def crop(self, rng: np.random.Generator, crop: CropFormat) -> np.ndarray:
        """A crop of its own for every state of `rng`."""
        return synthesis.music(rng, crop.length, crop.sample_rate, crop.channels)


class RandomCrops:
    """Random crops of tracks: each second of audio is as likely as any other of the same weight."""

    def __init__(self, tracks: Sequence[Track], crop: CropFormat, seed: int, health: Health | None = None):
        self._tracks, self._crop, self._seed = tracks, crop, seed
        self._health = health or Health(len(tracks))
        shortest = crop.length / crop.sample_rate
        self._ends = np.cumsum([max(track.seconds, shortest) * track.weight for track in tracks])

    def __getitem__(self, index: int) -> np.ndarray:
        rng = _generator(self._seed, _TRAIN_STREAM, index)
        reason, loudest = None, None
        for _ in range(_ATTEMPTS):
            chosen = int(np.searchsorted(self._ends, rng.random() * self._ends[-1], side="right"))
            audio = self._tracks[min(chosen, len(self._tracks) - 1)].audio
            position = rng.random()
            # What is known to be bad is not tried again: that may take as long as its timeout.
            if self._health.is_bad(audio.name):
                self._health.replaced(audio.name)
                continue
            try:
                crop = _read(audio, position, rng, self._crop)
            except UnreachableError:  # of its server, not of the file: others would not come either
                raise
            except DataError as error:
                reason = error
                self._health.replaced(audio.name, str(error))
                continue
            loudness = _rms_db(crop) if self._crop.min_loudness_db is not None else None
            if loudest is None or (loudness is not None and loudness > loudest[0]):
                loudest = (loudness, crop)
            if loudness is None or loudness >= self._crop.min_loudness_db:
                break
        if loudest is None:
            raise DataError(f"{_ATTEMPTS} crops in a row could not be read; the last: {reason or 'known to be bad'}")
        return _finish(loudest[1], self._crop)


class FixedCrops:
    """The validation crops: spread evenly over the tracks, the same in every run."""

    def __init__(self, tracks: Sequence[Track], crop: CropFormat, health: Health | None = None):
        self._tracks, self._crop = tracks, crop
        self._health = health or Health(len(tracks))

    def __getitem__(self, index: int) -> np.ndarray:
        reason = "known to be bad"
        for offset in range(len(self._tracks)):
            audio = self._tracks[(index + offset) % len(self._tracks)].audio
            rng = _generator(0, _VALIDATION_STREAM, index)
            position = rng.random()
            if self._health.is_bad(audio.name):
                continue
            try:
                return _finish(_read(audio, position, rng, self._crop), self._crop)
            except UnreachableError:
                raise
            except DataError as error:
                reason = error
                self._health.replaced(audio.name, str(error))
        raise DataError(f"no validation file could be read; the last: {reason}")


class SyntheticCrops:
    """The built-in generator's music; `validation` draws from a stream of its own."""

    def __init__(self, crop: CropFormat, seed: int, validation: bool = False):
        self._crop, self._seed = crop, 0 if validation else seed
        self._stream = _VALIDATION_STREAM if validation else _TRAIN_STREAM

    def __getitem__(self, index: int) -> np.ndarray:
        return _finish(Generated().crop(_generator(self._seed, self._stream, index), self._crop), self._crop)


class Augmented:
    """Another source's records, each changed as its own generator decides."""

    def __init__(self, source, augment: Augment, seed: int):
        self._source, self._augment, self._seed = source, augment, seed

    def __getitem__(self, index: int) -> np.ndarray:
        return self._augment(self._source[index], _generator(self._seed, _AUGMENT_STREAM, index))


class Repeated:
    """The first `period` records of another source, over and over."""

    def __init__(self, source, period: int):
        self._source, self._period = source, period

    def __getitem__(self, index: int) -> np.ndarray:
        return self._source[index % self._period]


def _read(audio, position, rng, crop):
    if isinstance(audio, Generated):
        return audio.crop(rng, crop)
    deadline.begin(audio.name)
    return audio_file.read_window(audio, position, crop.length, crop.sample_rate, crop.channels, crop.loop)


def _rms_db(audio):
    return 10 * np.log10(float(np.mean(np.square(audio, dtype=np.float64))) + 1e-20)


def _finish(audio, crop):
    peak = float(np.abs(audio).max())
    if crop.peak_normalize and peak > _QUIET:
        audio = audio / np.float32(peak)
    return np.ascontiguousarray(audio, np.float32)


def _generator(seed, stream, index):
    return np.random.Generator(np.random.Philox(key=[seed, (stream << 60) + index]))
