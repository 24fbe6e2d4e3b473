"""Crops as a pure function of (seed, order, index).

A run's data therefore has no state to save. Random numbers come from counter-based generators keyed by the crop's
index. A step's data is therefore independent of the number of threads and hosts.

`Crops` is the base class. Its subclasses differ in how a crop is drawn: `RandomCrops` for training, `FixedCrops` for
validation, `SyntheticCrops` for a run without files.
"""

import abc
import collections
import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from audiovae_jax.data.audio import audio_file, deadline, synthesis
from audiovae_jax.data.audio.remote import UnreachableError
from audiovae_jax.data.feeding.augment import Augment
from audiovae_jax.data.feeding.health import Health
from audiovae_jax.data.feeding.origin import Origin, Origins
from audiovae_jax.data.sets.catalog import Track
from audiovae_jax.errors import DataError

_MAX_READS = 16  # per crop
_MAX_DRAWS = 10_000  # per crop, including draws of files that are not read again
_ALL_HANG = "all files have timed out"
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
    """The audio of a track of unlimited generated music."""

    name = "the built-in generator"
    frames, sample_rate, channels = 3600 * 44100, 44100, 2

    def crop(self, rng: np.random.Generator, crop: CropFormat) -> np.ndarray:
        """Generate a crop that depends only on the state of `rng`."""
        return synthesis.music(rng, crop.length, crop.sample_rate, crop.channels)


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Crops(abc.ABC):
    """Crops by index, with augmentation, repetition and a timeout for reads.

    Subclasses draw them.

    Attributes:
      format: of each crop.
      seed: of the run.
      order: number of the order, see `in_order`.
      augment: applied to each crop with the crop's own random numbers; None for no augmentation.
      period: number of crops after which they repeat; None for no repetition.
      read_timeout: seconds after which a file that hangs is skipped; 0 for no timeout.
      health: notified of files that cannot be read; None if there are no files.
    """

    format: CropFormat
    seed: int = 0
    order: int = 0
    augment: Augment | None = None
    period: int | None = None
    read_timeout: float = 0.0
    health: Health | None = None
    _origins: Origins = dataclasses.field(default_factory=Origins, init=False, repr=False)

    @abc.abstractmethod
    def _draw(self, index: int) -> tuple[np.ndarray, Origin]:
        """Return crop `index` before augmentation, and its origin."""

    def in_order(self, order: int) -> "Crops":
        """Return other crops of the same audio, for a run that was rolled back.

        Repeated crops are the same in every order.
        """
        return self if self.period else dataclasses.replace(self, order=order)

    def origin(self, index: int) -> Origin | None:
        """Return where a crop was cut from, or None if it is no longer remembered."""
        return self._origins.get(self._wrapped(index))

    def __getitem__(self, index: int) -> np.ndarray:
        return self.batch([index])[0]

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        """Return several crops, stacked: `[len(indices), length, channels]`.

        One call of the helper thread reads all of them. If a file hangs, they are read again without it.

        Raises:
          DataError: too many files are bad.
        """
        while True:
            try:
                return deadline.within(self.read_timeout, stack, self._crop, indices)
            except deadline.TimedOutError as error:
                if error.what is None:  # not caused by a file
                    raise
                self.health.replaced(error.what, f"{error.what}: {error}", is_hanging=True)

    def _crop(self, index):
        index = self._wrapped(index)
        crop, origin = self._draw(index)
        self._origins.remember(index, origin)
        if self.augment is not None:
            crop = self.augment(crop, _generator(self.seed, _AUGMENT_STREAM, index, self.order))
        return crop

    def _wrapped(self, index):
        return index % self.period if self.period else index

    def _read(self, audio, position, rng) -> np.ndarray | DataError:
        """Read a crop, not normalized. Return the error if the file cannot be used."""
        if isinstance(audio, Generated):
            return audio.crop(rng, self.format)
        deadline.begin(audio.name)
        crop = self.format
        try:
            return audio_file.read_window(audio, position, crop.length, crop.sample_rate, crop.channels, crop.loop)
        except UnreachableError:  # other files on the server would fail too
            raise
        except DataError as error:
            self.health.replaced(audio.name, str(error))
            return error


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class RandomCrops(Crops):
    """Random crops of tracks.

    A track is drawn with probability proportional to its duration times its weight. The crop's position in the track is
    uniform, so the first and last seconds of a track are drawn less often than its middle.

    Attributes:
      tracks: the tracks to draw from.
    """

    tracks: Sequence[Track]

    def __post_init__(self):
        object.__setattr__(self, "_ends", _ends(self.tracks, self.format))

    def _draw(self, index):
        rng = _generator(self.seed, _TRAIN_STREAM, index, self.order)
        least = self.format.min_loudness_db
        failed, loudest, reads, has_hung = {}, None, 0, False
        for _ in range(_MAX_DRAWS):
            audio = self.tracks[_drawn(self._ends, rng.random())].audio
            position = rng.random()
            # Files that failed for other crops are read again, so that a crop is independent of earlier reads. Only
            # files that timed out are skipped, since another read would wait for the timeout again.
            if audio.name in failed:
                continue
            if self.health.is_hanging(audio.name):
                has_hung = True
                continue
            reads += 1
            crop = self._read(audio, position, rng)
            if isinstance(crop, DataError):
                failed[audio.name] = crop
                if reads == _MAX_READS:
                    break
                continue
            loudness = _rms_db(crop) if least is not None else None
            if loudest is None or (loudness is not None and loudness > loudest[0]):
                loudest = (loudness, crop, _origin(audio, position, self.format))
            if loudness is None or loudness >= least or reads == _MAX_READS:
                break
        if loudest is None:
            reason = next(reversed(failed.values()), _ALL_HANG)
            raise DataError(f"{reads} files in a row could not be read; the last: {reason}")
        if has_hung:
            self.health.count_replaced()
        return _finish(loudest[1], self.format), loudest[2]


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class FixedCrops(Crops):
    """The validation crops, which do not depend on the seed.

    The tracks are laid end to end, each with a length proportional to its probability. The result is divided into
    `count` parts. Each part yields one crop.

    Attributes:
      tracks: the tracks to cut from.
      count: number of crops.
      spread: whether to use every file once before using one again. Crops of the same file then do not overlap, if the
        file is long enough.
    """

    tracks: Sequence[Track]
    count: int
    spread: bool = False

    def __post_init__(self):
        ends = _ends(self.tracks, self.format)
        chosen = [_drawn(ends, (i + 0.5) / self.count) for i in range(self.count)]
        object.__setattr__(self, "_chosen", _spread(self.tracks, chosen) if self.spread else chosen)

    def _draw(self, index):
        reason = _ALL_HANG
        number = index % self.count
        first = self._chosen[number]
        for offset in range(len(self.tracks)):
            audio = self.tracks[(first + offset) % len(self.tracks)].audio
            rng = _generator(0, _VALIDATION_STREAM, index)
            position = rng.random()
            if self.spread:
                before = self._chosen[:number].count(first)
                position = _apart(audio, before, self._chosen.count(first), position, self.format)
            if self.health.is_hanging(audio.name):
                continue
            crop = self._read(audio, position, rng)
            if not isinstance(crop, DataError):
                return _finish(crop, self.format), _origin(audio, position, self.format)
            reason = crop
        raise DataError(f"no validation file could be read; the last: {reason}")


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class SyntheticCrops(Crops):
    """Crops of generated music.

    Attributes:
      validation: whether to draw the validation crops, which are the same for every seed.
    """

    validation: bool = False

    def origin(self, index: int) -> Origin:
        """Return the built-in generator as the origin."""
        return Origin(Generated.name)

    def _draw(self, index):
        seed, stream = (0, _VALIDATION_STREAM) if self.validation else (self.seed, _TRAIN_STREAM)
        crop = Generated().crop(_generator(seed, stream, index, self.order), self.format)
        return _finish(crop, self.format), Origin(Generated.name)


def stack(read: Callable[[int], np.ndarray], indices: Sequence[int]) -> np.ndarray:
    """Return `read(index)` of each index, stacked: `[len(indices), ...]`."""
    first = np.asarray(read(indices[0]))
    batch = np.empty((len(indices), *first.shape), first.dtype)
    batch[0] = first
    for row, index in enumerate(indices[1:], start=1):
        batch[row] = read(index)
    return batch


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


def _generator(seed, stream, index, order=0):
    # Seeds are below 2^32, so that no order of one seed equals another seed.
    return np.random.Generator(np.random.Philox(key=[seed + (order << 32), (stream << 60) + index]))
