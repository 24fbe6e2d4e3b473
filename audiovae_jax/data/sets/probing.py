"""Probing many files in parallel, with results cached until a file changes."""

import concurrent.futures
import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import tqdm

from audiovae_jax.data.audio import audio_file, deadline, files, levels, remote
from audiovae_jax.data.audio.audio_file import AudioFile, Place
from audiovae_jax.data.formats import containers
from audiovae_jax.errors import DataError, RootError
from audiovae_jax.storage import atomic
from audiovae_jax.storage.bucket_path import BucketPath

_CHUNK = 256  # files per task that reads sizes and times
_VERSION = 7  # of the index, so that results of older programs are not used


@dataclasses.dataclass(frozen=True)
class Options:
    """Options of finding and probing a data set's files.

    Attributes:
      channels: number of channels that files must be convertible to.
      min_seconds: shorter files are rejected.
      num_threads: number of threads that probe files.
      read_timeout: seconds after which a file that hangs is skipped; 0 for no timeout.
      index_folder: folder of cached results; None to cache nothing.
      access: access to files behind URLs.
      leave_out: folders to skip, on this machine or behind URLs.
      max_peak: louder files are rejected.
    """

    channels: int
    min_seconds: float = 0.0
    num_threads: int = 8
    read_timeout: float = 0.0
    index_folder: Path | None = None
    access: remote.Access = dataclasses.field(default_factory=remote.Access)
    leave_out: tuple[Path | BucketPath | str, ...] = ()
    max_peak: float = math.inf

    def timeout(self, name: str) -> float:
        """Return the seconds until a read of the file `name` times out.

        0 means no timeout.
        """
        return remote.read_timeout(self.read_timeout, self.access.retry_seconds, [name])


@dataclasses.dataclass(frozen=True)
class Found:
    """The files under a root.

    Attributes:
      files: `(name under the root, file)` of each file that is read, sorted.
      ignored: `(name, reason)` of hidden files and folders, and of audio in a format that is not read.
    """

    files: list[tuple[str, Place]]
    ignored: list[tuple[str, str]]


def find(root: str, options: Options, extensions: Sequence[str] = audio_file.EXTENSIONS) -> Found:
    """Find the audio files under a folder or URL, at any depth.

    Hidden files and folders below the root are left out.

    Raises:
      DataError: the folder does not exist.
    """
    if remote.is_url(root):
        left_out = tuple(f"{folder}/" for folder in options.leave_out)
        listed = [
            (name, file)
            for name, file in remote.list_files(root, options.access)
            if not atomic.is_temporary(name.rpartition("/")[2]) and not file.url.startswith(left_out)
        ]
        ignored = files.ignored((name for name, _ in listed), extensions)
        return Found(
            [(name, file) for name, file in listed if files.is_read(name, extensions)],
            [(f"{root.rstrip('/')}/{name}", reason) for name, reason in ignored.items()],
        )
    folder = Path(remote.local_path(root))
    if not folder.is_dir():
        raise RootError(root, "there is no such folder")
    left_out = [path for path in options.leave_out if isinstance(path, Path)]
    found, ignored = files.scan(folder, extensions, left_out)
    return Found([(path.relative_to(folder).as_posix(), path) for path in found], ignored)


def read(root: str, options: Options, name: str = "") -> bytes:
    """Read a small file under a root, or a root that is a file.

    Raises:
      DataError: the file cannot be read.
    """
    if remote.is_url(root):
        return remote.read_bytes(f"{root.rstrip('/')}/{name}" if name else root, options.access)
    try:
        return (Path(remote.local_path(root)) / name).read_bytes()
    except OSError as error:
        raise RootError(root, error.strerror or str(error)) from error


def find_under(root: str, folder: str, options: Options, extensions: Sequence[str] = audio_file.EXTENSIONS) -> Found:
    """Like `find`, for a folder under the root; names are relative to the folder."""
    if not folder:
        return find(root, options, extensions)
    if not remote.is_url(root):
        return find(str(Path(remote.local_path(root)) / folder), options, extensions)
    start = f"{folder}/"
    found = find(root, options, extensions)
    return Found(
        [(name.removeprefix(start), place) for name, place in found.files if name.startswith(start)],
        [(name, reason) for name, reason in found.ignored if name.startswith(f"{root.rstrip('/')}/{start}")],
    )


def probe(root: str, places: Sequence[Place], options: Options) -> list[AudioFile | str]:
    """Probe files, and return an `AudioFile` or the reason of failure for each.

    Results are cached in `options.index_folder`, in one file per root, by path, size and modification time. Failures
    that may be temporary, like timeouts, are not cached.

    Raises:
      UnreachableError: a server failed for too long, which says nothing about its files.
    """

    def probe_place(i) -> tuple[bool, dict | str]:
        """Return `(is_lasting, result)`: the fields of an `AudioFile`, or a reason."""
        place = places[i]
        try:
            file = deadline.within(options.timeout(str(place)), audio_file.probe, place)
            return True, file.to_json()
        except OSError as error:
            return False, error.strerror or str(error)
        except deadline.TimedOutError as error:
            return False, str(error)
        except remote.UnreachableError:
            raise
        except (remote.RefusedError, containers.MissingError) as error:
            return False, str(error)
        except DataError as error:
            return True, str(error)

    subject = root if remote.is_url(root) else os.path.realpath(root)
    results = cached(subject, places, probe_place, options, f"looking at files under {root}")
    return [
        result if isinstance(result, str) else _checked(AudioFile.from_json(place, result), options)
        for place, result in zip(places, results, strict=True)
    ]


def cached(
    subject: str, places: Sequence[Place], measure: Callable[[int], tuple[bool, Any]], options: Options, doing: str
) -> list[Any]:
    """Return `measure`'s result for each place, from a cache if it has not changed.

    Args:
      subject: name of the cache, which has one file in `options.index_folder` per subject.
      places: anything that `identity` supports.
      measure: maps the index of a place to `(is_lasting, result)`. Only lasting results are cached. They must be JSON.
      options: of probing.
      doing: label of the progress bar.
    """
    index = _Index(options.index_folder, subject)
    with concurrent.futures.ThreadPoolExecutor(options.num_threads) as pool:
        chunks = [places[i : i + _CHUNK] for i in range(0, len(places), _CHUNK)]
        marked = [mark for of_chunk in pool.map(lambda chunk: [*map(identity, chunk)], chunks) for mark in of_chunk]
        results = [index.get(key, mark) for key, mark in marked]
        new = [i for i, result in enumerate(results) if result is None]
        # The bar appears only if this takes long.
        measured = tqdm.tqdm(pool.map(measure, new), total=len(new), desc=doing, unit="file", delay=5.0, leave=False)
        for i, (lasting, result) in zip(new, measured, strict=True):
            results[i] = result
            if not lasting:
                marked[i] = ("", "")
    for (key, mark), result in zip(marked, results, strict=True):
        index.put(key, mark, result)
    index.save()
    return results


def identity(place) -> tuple[str, str]:
    """Return `(name, mark)` of a place; the mark changes with its content.

    Both are empty if a local file cannot be accessed.

    Args:
      place: a file, a member of an archive, or a part of either. A part has attributes `within` and `part`.
    """
    if hasattr(place, "part"):
        key, mark = identity(place.within)
        return f"{key} {place.part}", mark
    if isinstance(place, Path):
        try:
            stat = os.stat(place)
        except OSError:
            return "", ""
        return os.fsencode(place).hex() if _odd(place) else str(place), f"{stat.st_size} {stat.st_mtime_ns}"
    archive = getattr(place, "archive", None)
    if archive is not None:
        key, mark = identity(archive)
        return f"{key} {place.name}", f"{mark} {place.offset} {place.size}"
    return place.url, f"{place.size} {place.mark}"


def _odd(path):
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return True
    return False


def _checked(file, options):
    try:
        audio_file.require_use(file, options.min_seconds, options.channels)
        if file.level is not None and file.level.peak > options.max_peak:
            raise DataError(levels.far_above(file.level))
    except DataError as error:
        return str(error)
    return file


class _Index:
    def __init__(self, folder, subject):
        name = hashlib.sha256(os.fsencode(subject)).hexdigest()[:24]
        self._path = None if folder is None else Path(folder) / f"{name}.json"
        self._known, self._seen = {}, {}
        if self._path is None:
            return
        try:
            content = json.loads(self._path.read_text())
            self._known = content["files"] if content["version"] == _VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):  # without a cache, all files are probed
            self._known = {}

    def get(self, key, mark):
        entry = self._known.get(key)
        return entry[1] if isinstance(entry, list) and len(entry) == 2 and entry[0] == mark else None

    def put(self, key, mark, result):
        if mark:
            self._seen[key] = [mark, result]

    def save(self):
        if self._path is None or self._seen == self._known:
            return
        try:
            with atomic.replacing(self._path) as temporary:
                temporary.write_text(json.dumps({"version": _VERSION, "files": self._seen}))
        except OSError:
            return
