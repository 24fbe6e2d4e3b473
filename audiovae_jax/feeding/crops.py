"""Crops by number: a record is a function of (seed, index) alone, so a run's data needs no state.

Random numbers come from counter-based generators keyed by the record, so that neither threads nor
the number of hosts change what a step sees. Training records come in orders, by number: `in_order(1)`
is another draw of the same audio, for a run that cannot go on with the first.
"""

import collections
import copy
import dataclasses
from collections.abc import Sequence

import numpy as np

from audiovae_jax.data import audio_file, deadline, synthesis
from audiovae_jax.data.remote import UnreachableError
from audiovae_jax.datasets.catalog import Track
from audiovae_jax.errors import DataError
from audiovae_jax.feeding.augment import Augment
from audiovae_jax.feeding.health import Health
from audiovae_jax.feeding.origin import Origin, Origins

_ATTEMPTS = 16  # reads for a crop
_MOST_DRAWS = 10_000  # for one, of files that are not tried again
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
    """Random crops of tracks: a track in proportion to its seconds times its weight, then any crop of it alike.

    So the first and last second of a track are drawn less often than one in its middle.
    """

    def __init__(self, tracks: Sequence[Track], crop: CropFormat, seed: int, health: Health | None = None):
        self._tracks, self._crop, self._seed = tracks, crop, seed
        self._health = health or Health(len(tracks))
        self._ends = _ends(tracks, crop)
        self._order, self._origins = 0, Origins()

    def in_order(self, order: int) -> "RandomCrops":
        """These tracks' crops in another order; they share what is known of the files."""
        return _in_order(self, order, _origins=Origins())

    def origin(self, index: int) -> Origin | None:
        """Where a record was cut from that was made lately."""
        return self._origins.get(index)

    def __getitem__(self, index: int) -> np.ndarray:
        rng = _generator(self._seed, _TRAIN_STREAM, index, self._order)
        failed, loudest, reads, is_without = {}, None, 0, False
        for _ in range(_MOST_DRAWS):
            chosen = _drawn(self._ends, rng.random())
            audio = self._tracks[chosen].audio
            position = rng.random()
            # What others have found bad is tried all the same, or a crop would depend on what was read before it.
            # Only what has not answered is not: that takes as long as its timeout.
            if audio.name in failed:
                continue
            if self._health.is_hanging(audio.name):
                is_without = True
                continue
            reads += 1
            try:
                crop = _read(audio, position, rng, self._crop)
            except UnreachableError:  # of its server, not of the file: others would not come either
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
    """The validation crops: the same in every run.

    The tracks, one after the other and each as long as it is likely to be drawn, are divided into `count` parts of
    which each has a crop of its own.

    Args:
      tracks, crop, health: see `RandomCrops`.
      count: how many there are.
      spread: take no file again while others are unused, and then a stretch of it that overlaps no other if it can.
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
        """Where a record was cut from that was made lately."""
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
    """The built-in generator's music; `validation` draws from a stream of its own."""

    def __init__(self, crop: CropFormat, seed: int, validation: bool = False):
        self._crop, self._seed = crop, 0 if validation else seed
        self._stream = _VALIDATION_STREAM if validation else _TRAIN_STREAM
        self._order = 0

    def in_order(self, order: int) -> "SyntheticCrops":
        """Other music of the same kind."""
        return _in_order(self, order)

    def origin(self, index: int) -> Origin:
        """The generator."""
        return Origin(Generated.name)

    def __getitem__(self, index: int) -> np.ndarray:
        rng = _generator(self._seed, self._stream, index, self._order)
        return _finish(Generated().crop(rng, self._crop), self._crop)


class Augmented:
    """Another source's records, each changed as its own generator decides."""

    def __init__(self, source, augment: Augment, seed: int):
        self._source, self._augment, self._seed = source, augment, seed
        self._order = 0

    def in_order(self, order: int) -> "Augmented":
        """The other source's records in another order, each changed as its number there decides."""
        return _in_order(self, order, _source=self._source.in_order(order))

    def origin(self, index: int) -> Origin | None:
        """Where the other source's record comes from."""
        return self._source.origin(index)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._augment(self._source[index], _generator(self._seed, _AUGMENT_STREAM, index, self._order))


class Repeated:
    """The first `period` records of another source, over and over."""

    def __init__(self, source, period: int):
        self._source, self._period = source, period

    def in_order(self, order: int) -> "Repeated":
        """The very same records: they are fixed."""
        return self

    def origin(self, index: int) -> Origin | None:
        """Where the record that is repeated comes from."""
        return self._source.origin(index % self._period)

    def __getitem__(self, index: int) -> np.ndarray:
        return self._source[index % self._period]


def _ends(tracks, crop):
    """Where each track ends if all lie end to end, each as long as it is likely to be drawn."""
    shortest = crop.length / crop.sample_rate
    return np.cumsum([track.share(shortest) for track in tracks])


def _drawn(ends, place):
    """The number of the track at a place in 0..1."""
    return min(int(np.searchsorted(ends, place * ends[-1], side="right")), len(ends) - 1)


def _spread(tracks, chosen):
    """Numbers of tracks in place of `chosen`: of the files that were taken least often, the next."""
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
    """Where in 0..1 the window with `number` of `count` is, at `position` in its own part of the audio."""
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
    # Seeds are below 2^32, so that an order's numbers are no other seed's.
    return np.random.Generator(np.random.Philox(key=[seed + (order << 32), (stream << 60) + index]))
