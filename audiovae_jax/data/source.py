"""Crops by number: a record is a function of (seed, index) alone, so a run's data needs no state.

Random numbers come from counter-based generators keyed by the record, so that neither threads nor
the number of hosts change what a step sees.
"""

import concurrent.futures
import dataclasses
import hashlib
import os
import sys
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np

from audiovae_jax.data import audio_file, files, synthesis
from audiovae_jax.data.audio_file import AudioFile
from audiovae_jax.errors import DataError

_ATTEMPTS = 16
_QUIET = 1e-3  # a crop whose peak is below -60 dBFS is left as quiet as it is
# Keys of the generators' streams, which the run's seed must not collide with.
_TRAIN_STREAM, _VALIDATION_STREAM = 0, 1


@dataclasses.dataclass(frozen=True)
class CropFormat:
    """What a crop is: `[length, channels]` float32 at `sample_rate` Hz."""

    length: int
    sample_rate: int
    channels: int
    peak_normalize: bool = True


@dataclasses.dataclass(frozen=True)
class DataFolder:
    """The usable files under a folder, split for training and validation.

    Attributes:
      train, validation: the files.
      skipped: `(path, reason)` of those that cannot be used.
      fingerprint: changes when a file comes, goes, or changes its length or rate.
    """

    train: tuple[AudioFile, ...]
    validation: tuple[AudioFile, ...]
    skipped: tuple[tuple[Path, str], ...]
    fingerprint: str


def scan(
    root: str,
    *,
    validation_fraction: float,
    min_seconds: float,
    channels: int,
    num_threads: int,
    leave_out: Collection[Path] = (),
) -> DataFolder:
    """Find and probe the audio files under `root`, at any depth; folders in `leave_out` are passed over.

    Which side of the split a file is on depends on its own relative path: it stays there when others
    come. Only where that leaves a side empty, the file that is nearest to it goes over.

    Raises:
      DataError: there is no such folder, or it holds nothing that can be used.
    """
    folder = Path(root)
    if not folder.is_dir():
        raise DataError(f"config.data.root={root}: there is no such folder")
    paths = files.find(folder, audio_file.EXTENSIONS, leave_out)
    if not paths:
        raise DataError(
            f"config.data.root={root} holds no audio file; looked for {' '.join(audio_file.EXTENSIONS)} at any depth"
        )

    def look(path):
        try:
            return audio_file.probe(path, min_seconds, channels)
        except (DataError, OSError) as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
        probed = list(zip(paths, pool.map(look, paths), strict=True))
    skipped = tuple((path, result) for path, result in probed if isinstance(result, str))
    usable = [result for _, result in probed if isinstance(result, AudioFile)]
    if not usable:
        reasons = "\n".join(f"  {files.printable(path)}: {reason}" for path, reason in skipped[:10])
        raise DataError(f"config.data.root={root} holds no usable audio file:\n{reasons}")

    names = {file: file.path.relative_to(folder).as_posix() for file in usable}
    places = {file: int.from_bytes(hashlib.sha256(os.fsencode(names[file])).digest()[:8]) / 2**64 for file in usable}
    by_place = sorted(usable, key=places.get)
    n_validation = sum(place < validation_fraction for place in places.values())
    validation = set(by_place[: min(max(1, n_validation), max(1, len(usable) - 1))])
    train = [file for file in usable if file not in validation] or usable  # one file serves both
    listing = "\n".join(f"{names[f]} {f.frames} {f.sample_rate} {f.channels}" for f in usable)
    return DataFolder(
        train=tuple(train),
        validation=tuple(file for file in usable if file in validation),
        skipped=skipped,
        fingerprint=hashlib.sha256(os.fsencode(listing)).hexdigest()[:16],
    )


class FileCrops:
    """Random crops of files: each second of audio is as likely as any other."""

    def __init__(self, files: Sequence[AudioFile], crop: CropFormat, seed: int):
        self._files, self._crop, self._seed = files, crop, seed
        self._ends = np.cumsum([max(file.seconds, crop.length / crop.sample_rate) for file in files])
        self._reported: set[Path] = set()
        self._lock = threading.Lock()

    def __getitem__(self, index: int) -> np.ndarray:
        rng = _generator(self._seed, _TRAIN_STREAM, index)
        reason = None
        for _ in range(_ATTEMPTS):
            chosen = int(np.searchsorted(self._ends, rng.random() * self._ends[-1], side="right"))
            file = self._files[min(chosen, len(self._files) - 1)]
            try:
                return _read_crop(file, rng.random(), self._crop)
            except DataError as error:
                reason = error
                self._report(file, error)
        raise DataError(f"{_ATTEMPTS} crops in a row could not be read; the last: {reason}")

    def _report(self, file, error):
        with self._lock:
            if file.path not in self._reported:
                self._reported.add(file.path)
                print(f"warning: another crop is taken in place of {error}", file=sys.stderr)


class FixedFileCrops:
    """The validation crops: spread evenly over the files, the same in every run."""

    def __init__(self, files: Sequence[AudioFile], crop: CropFormat):
        self._files, self._crop = files, crop

    def __getitem__(self, index: int) -> np.ndarray:
        position = _generator(0, _VALIDATION_STREAM, index).random()
        for offset in range(len(self._files)):
            try:
                return _read_crop(self._files[(index + offset) % len(self._files)], position, self._crop)
            except DataError as error:
                reason = error
        raise DataError(f"no validation file could be read; the last: {reason}")


class SyntheticCrops:
    """The built-in generator's music; `validation` draws from a stream of its own."""

    def __init__(self, crop: CropFormat, seed: int, validation: bool = False):
        self._crop, self._seed = crop, 0 if validation else seed
        self._stream = _VALIDATION_STREAM if validation else _TRAIN_STREAM

    def __getitem__(self, index: int) -> np.ndarray:
        crop = self._crop
        rng = _generator(self._seed, self._stream, index)
        return _finish(synthesis.music(rng, crop.length, crop.sample_rate, crop.channels), crop)


class Repeated:
    """The first `period` records of another source, over and over."""

    def __init__(self, source, period: int):
        self._source, self._period = source, period

    def __getitem__(self, index: int) -> np.ndarray:
        return self._source[index % self._period]


def _read_crop(file, position, crop):
    return _finish(audio_file.read_window(file, position, crop.length, crop.sample_rate, crop.channels), crop)


def _finish(audio, crop):
    peak = float(np.abs(audio).max())
    if crop.peak_normalize and peak > _QUIET:
        audio = audio / np.float32(peak)
    return np.ascontiguousarray(audio, np.float32)


def _generator(seed, stream, index):
    return np.random.Generator(np.random.Philox(key=[seed, (stream << 60) + index]))
