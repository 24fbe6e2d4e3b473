"""Crops as a pure function of (seed, index).

A run's data therefore has no state to save. Random numbers come from counter-based generators keyed by the record's
index. A step's data is therefore independent of the number of threads and hosts. Training records have numbered orders:
`in_order(1)` draws the same audio in another order, for a run that cannot continue with the first.
"""

import collections
import copy
import dataclasses
from collections.abc import Sequence

import numpy as np

from audiovae_jax.data.audio import audio_file, deadline, synthesis
from audiovae_jax.data.audio.remote import UnreachableError
from audiovae_jax.data.feeding.augment import Augment
from audiovae_jax.data.feeding.health import Health
from audiovae_jax.data.feeding.origin import Origin, Origins
from audiovae_jax.data.sets.catalog import Track
from audiovae_jax.errors import DataError

_ATTEMPTS = 16  # maximum number of reads per crop
_MOST_DRAWS = 10_000  # maximum number of draws per crop, including files that are not read again
_QUIET = 1e-3  # crops with a peak below -60 dBFS are not normalized
# Keys of the random streams, which must not collide with the run's seed.
_TRAIN_STREAM, _VALIDATION_STREAM, _AUGMENT_STREAM = 0, 1, 2


@dataclasses.dataclass(frozen=True)
class CropFormat:
    """Format of a crop: `[length, channels]` float32 at `sample_rate` Hz.

    Attributes:
      length: in samples.
      sample_rate: in Hz.
      channels: number of channels of the crop.
      peak_normalize: whether to scale to a peak of 1, unless the peak is below -60 dBFS.
      loop: whether to extend short files by repeating them; otherwise they are padded with zeros.
      min_loudness_db: lowest RMS of a training crop in dBFS; quieter crops are drawn again. None accepts all.
    """

    length: int
    sample_rate: int
    channels: int
    peak_normalize: bool = True
    loop: bool = False
    min_loudness_db: float | None = None


class Generated:
    """The audio of a track that consists of generated music without end."""

    name = "the built-in generator"
    frames, sample_rate, channels = 3600 * 44100, 44100, 2

    def crop(self, rng: np.random.Generator, crop: CropFormat) -> np.ndarray:
        """Generate a crop that depends only on the state of `rng`."""
        return synthesis.music(rng, crop.length, crop.sample_rate, crop.channels)


class RandomCrops:
    """Random crops of tracks.

    A track is drawn with probability proportional to its duration times its weight. The crop's position in the track is
    uniform, so the first and last seconds of a track are drawn less often than its middle.
    """

    def __init__(self, tracks: Sequence[Track], crop: CropFormat, seed: int, health: Health | None = None):
        self._tracks, self._crop, self._seed = tracks, crop, seed
        self._health = health or Health(len(tracks))
        self._ends = _ends(tracks, crop)
        self._order, self._origins = 0, Origins()

    def in_order(self, order: int) -> "RandomCrops":
        """Return the same tracks' crops in another order, sharing the health of the files."""
        return _in_order(self, order, _origins=Origins())

    def origin(self, index: int) -> Origin | None:
        """Return where a record was cut from, or None if it is no longer remembered."""
        return self._origins.get(index)

    def __getitem__(self, index: int) -> np.ndarray:
        rng = _generator(self._seed, _TRAIN_STREAM, index, self._order)
        failed, loudest, reads, is_without = {}, None, 0, False
        for _ in range(_MOST_DRAWS):
            chosen = _drawn(self._ends, rng.random())
            audio = self._tracks[chosen].audio
            position = rng.random()
            # Files that failed for other crops are read again, so that a crop is independent of earlier reads. Only
            # files that timed out are skipped, since another read would wait for the timeout again.
            if audio.name in failed:
                continue
            if self._health.is_hanging(audio.name):
                is_without = True
                continue
            reads += 1
            try:
                crop = _read(audio, position, rng, self._crop)
            except UnreachableError:  # the server is unreachable, so other files would fail too
                raise
            except DataError as error:
                failed[audio.name] = error
                self._health.replaced(audio.name, str(error))
                if reads == _ATTEMPTS:
                    break
                continue
            loudness = _rms_db(crop) if self._crop.min_loudness_db is not None else None
            if loudest is None or (loudness is not None and loudness > loudest[0]):
                loudest = (loudness, crop, _origin(audio, position, self._crop))
            if loudness is None or loudness >= self._crop.min_loudness_db or reads == _ATTEMPTS:
                break
        if loudest is None:
            raise DataError(
                f"{reads} files in a row could not be read; the last: "
                f"{next(reversed(failed.values()), 'those that there are do not answer')}"
            )
        if is_without:
            self._health.count_replaced()
        self._origins.remember(index, loudest[2])
        return _finish(loudest[1], self._crop)


class FixedCrops:
    """The validation crops, which are the same in every run.

    The tracks are laid end to end, each with a length proportional to its probability. The result is divided into
    `count` parts. Each part yields one crop.

    Args:
      tracks, crop, health: see `RandomCrops`.
      count: number of crops.
      spread: whether to use every file once before using one again. Crops of the same file then do not overlap, if the
        file is long enough.
    """

    def __init__(
        self,
        tracks: Sequence[Track],
        crop: CropFormat,
        count: int,
        health: Health | None = None,
        spread: bool = False,
    ):
        self._tracks, self._crop, self._count = tracks, crop, count
        self._health = health or Health(len(tracks))
        self._origins = Origins()
        ends = _ends(tracks, crop)
        self._chosen = [_drawn(ends, (i + 0.5) / count) for i in range(count)]
        if spread:
            self._chosen = _spread(tracks, self._chosen)
        self._is_spread = spread

    def origin(self, index: int) -> Origin | None:
        """Return where a record was cut from, or None if it is no longer remembered."""
        return self._origins.get(index)

    def __getitem__(self, index: int) -> np.ndarray:
        reason = "those that there are do not answer"
        number = index % self._count
        first = self._chosen[number]
        for offset in range(len(self._tracks)):
            audio = self._tracks[(first + offset) % len(self._tracks)].audio
            rng = _generator(0, _VALIDATION_STREAM, index)
            position = rng.random()
            if self._is_spread:
                before = self._chosen[:number].count(first)
                position = _apart(audio, before, self._chosen.count(first), position, self._crop)
            if self._health.is_hanging(audio.name):
                continue
            try:
                crop = _finish(_read(audio, position, rng, self._crop), self._crop)
                self._origins.remember(index, _origin(audio, position, self._crop))
                return crop
            except UnreachableError:
                raise
            except DataError as error:
                reason = error
                self._health.replaced(audio.name, str(error))
        raise DataError(f"no validation file could be read; the last: {reason}")


class SyntheticCrops:
    """Crops of generated music. `validation` selects a separate random stream."""

    def __init__(self, crop: CropFormat, seed: int, validation: bool = False):
        self._crop, self._seed = crop, 0 if validation else seed
        self._stream = _VALIDATION_STREAM if validation else _TRAIN_STREAM
        self._order = 0

    def in_order(self, order: int) -> "SyntheticCrops":
        """Return crops of different generated music."""
        return _in_order(self, order)

    def origin(self, index: int) -> Origin:
        """Return the built-in generator as the origin."""
        return Origin(Generated.name)

    def __getitem__(self, index: int) -> np.ndarray:
        rng = _generator(self._seed, self._stream, index, self._order)
        return _finish(Generated().crop(rng, self._crop), self._crop)


class Augmented:
    """Augmented records of another source, each with its own random generator."""

    def __init__(self, source, augment: Augment, seed: int):
        self._source, self._augment, self._seed = source, augment, seed
        self._order = 0

    def in_order(self, order: int) -> "Augmented":
        """Return the source's records in another order, with other augmentations."""
        return _in_order(self, order, _source=self._source.in_order(order))

    def origin(self, index: int) -> Origin | None:
        """Return the origin of the source's record."""
        return self._source.origin(index)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._augment(self._source[index], _generator(self._seed, _AUGMENT_STREAM, index, self._order))


class Repeated:
    """The first `period` records of another source, repeated."""

    def __init__(self, source, period: int):
        self._source, self._period = source, period

    def in_order(self, order: int) -> "Repeated":
        """Return this object, since its records are fixed."""
        return self

    def origin(self, index: int) -> Origin | None:
        """Return the origin of the repeated record."""
        return self._source.origin(index % self._period)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._source[index % self._period]


def _ends(tracks, crop):
    """Return the cumulative sum of the tracks' probabilities, not normalized."""
    shortest = crop.length / crop.sample_rate
    return np.cumsum([track.share(shortest) for track in tracks])


def _drawn(ends, place):
    """Return the index of the track at a place in 0..1."""
    return min(int(np.searchsorted(ends, place * ends[-1], side="right")), len(ends) - 1)


def _spread(tracks, chosen):
    """Replace each chosen track by the next track of the least used file."""
    files, times = collections.Counter({track.audio.name: 0 for track in tracks}), collections.Counter()
    spread = []
    for first in chosen:
        following = [*range(first, len(tracks)), *range(first)]
        track = min(following, key=lambda i: (files[tracks[i].audio.name], times[i]))
        files[tracks[track].audio.name] += 1
        times[track] += 1
        spread.append(track)
    return spread


def _apart(audio, number, count, position, crop):
    """Return the position in 0..1 of one of `count` windows over the audio.

    The audio is divided into `count` parts. `position` is the window's position in its part, in 0..1.
    """
    seconds, window = audio.frames / audio.sample_rate, crop.length / crop.sample_rate
    if count == 1 or seconds <= window:
        return position
    if seconds < count * window:
        return number / (count - 1)
    return (number * seconds / count + position * (seconds / count - window)) / (seconds - window)


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


def _origin(audio, position, crop):
    if isinstance(audio, Generated):
        return Origin(audio.name)
    start, _ = audio_file.window(audio, position, crop.length, crop.sample_rate)
    held = -(-audio.frames * crop.sample_rate // audio.sample_rate)
    return Origin(audio.name, start / audio.sample_rate, held if held < crop.length else None)


def _in_order(records, order, **changes):
    other = copy.copy(records)
    vars(other).update(_order=order, **changes)
    return other


def _generator(seed, stream, index, order=0):
    # Seeds are below 2^32, so that no order of one seed equals another seed.
    return np.random.Generator(np.random.Philox(key=[seed + (order << 32), (stream << 60) + index]))
