"""Looking at many files: each once, and remembered until it changes."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import tqdm

from audiovae_jax.data import audio_file, deadline, files, remote
from audiovae_jax.data.audio_file import AudioFile, Place
from audiovae_jax.errors import DataError
from audiovae_jax.storage import atomic
from audiovae_jax.storage.bucket_path import BucketPath

_CHUNK = 256  # files whose sizes and times a thread asks for at once
_VERSION = 1  # of the index; what a file is found to be must not depend on an older program


@dataclasses.dataclass(frozen=True)
class Options:
    """How a data set's files are looked at.

    Attributes:
      channels: what a file's channels must be adaptable to.
      min_seconds: shorter files are refused.
      num_threads: that look at files.
      read_timeout: seconds after which a file that does not answer is passed over; 0 waits for ever.
      index_folder: where what was found is remembered; None remembers nothing.
      access: how files behind URLs are reached.
      leave_out: folders, here or behind URLs, that are passed over.
    """

    channels: int
    min_seconds: float = 0.0
    num_threads: int = 8
    read_timeout: float = 0.0
    index_folder: Path | None = None
    access: remote.Access = dataclasses.field(default_factory=remote.Access)
    leave_out: tuple[Path | BucketPath, ...] = ()


def find(root: str, options: Options, extensions: Sequence[str] = audio_file.EXTENSIONS) -> list[tuple[str, Place]]:
    """`(name under root, file)` of the audio under a folder or URL, at any depth, sorted.

    Raises:
      DataError: there is no such folder.
    """
    if remote.is_url(root):
        left_out = tuple(f"{folder}/" for folder in options.leave_out)
        return [
            (name, file)
            for name, file in remote.list_files(root, options.access)
            if name.lower().endswith(tuple(extensions))
            and not atomic.is_temporary(name.rpartition("/")[2])
            and not file.url.startswith(left_out)
        ]
    folder = Path(remote.local_path(root))
    if not folder.is_dir():
        raise DataError(f"config.data.root={root}: there is no such folder")
    left_out = [path for path in options.leave_out if isinstance(path, Path)]
    return [(path.relative_to(folder).as_posix(), path) for path in files.find(folder, extensions, left_out)]


def probe(root: str, places: Sequence[Place], options: Options) -> list[AudioFile | str]:
    """What each file is, or why it cannot be used.

    What is found is kept in `options.index_folder`, a file for each root, keyed by path, size and time of change.
    What may be otherwise tomorrow is not kept: a file that does not answer.

    Raises:
      UnreachableError: a server has failed for too long; that says nothing about its files.
    """
    index = _Index(options.index_folder, root)

    def look(place) -> tuple[bool, list | str]:
        """Whether it would be the same tomorrow, and what it is: its frames, rate and channels, or a reason."""
        try:
            file = deadline.within(_patience(place, options), audio_file.probe, place)
            return True, [file.frames, file.sample_rate, file.channels]
        except OSError as error:
            return False, error.strerror or str(error)
        except deadline.TimedOutError as error:
            return False, str(error)
        except remote.UnreachableError:
            raise
        except DataError as error:
            return True, str(error)

    with concurrent.futures.ThreadPoolExecutor(options.num_threads) as pool:
        chunks = [places[i : i + _CHUNK] for i in range(0, len(places), _CHUNK)]
        marked = [
            identity for of_chunk in pool.map(lambda chunk: [*map(_identity, chunk)], chunks) for identity in of_chunk
        ]
        results: list[list | str | None] = [index.get(key, mark) for key, mark in marked]
        new = [i for i, result in enumerate(results) if result is None]
        looked = pool.map(look, [places[i] for i in new])
        for i, (lasting, result) in zip(new, _shown(looked, len(new), f"looking at files under {root}"), strict=True):
            results[i] = result
            if not lasting:
                marked[i] = ("", "")
    for (key, mark), result in zip(marked, results, strict=True):
        index.put(key, mark, result)
    index.save()
    return [
        result if isinstance(result, str) else _checked(AudioFile(place, *result), options)
        for place, result in zip(places, results, strict=True)
    ]


def _patience(place, options):
    """Seconds until a file is given up; what is behind a URL is tried again for a while of its own."""
    is_local = isinstance(getattr(place, "archive", place), Path)
    return options.read_timeout and options.read_timeout + (0 if is_local else options.access.retry_seconds)


def _identity(place):
    """`(name, mark)`; the mark changes with the content, and is empty for what cannot be looked at."""
    if isinstance(place, Path):
        try:
            stat = os.stat(place)
        except OSError:
            return "", ""
        return os.fsencode(place).hex() if _odd(place) else str(place), f"{stat.st_size} {stat.st_mtime_ns}"
    archive = getattr(place, "archive", None)
    if archive is not None:
        key, mark = _identity(archive)
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
    except DataError as error:
        return str(error)
    return file


def _shown(results, total, what) -> Iterator:
    # Only where there is time to read it.
    return tqdm.tqdm(results, total=total, desc=what, unit="file", delay=5.0, leave=False)


class _Index:
    def __init__(self, folder, root):
        name = hashlib.sha256(os.fsencode(root if remote.is_url(root) else os.path.realpath(root))).hexdigest()[:24]
        self._path = None if folder is None else Path(folder) / f"{name}.json"
        self._known, self._seen = {}, {}
        if self._path is None:
            return
        try:
            content = json.loads(self._path.read_text())
            self._known = content["files"] if content["version"] == _VERSION else {}
        except (OSError, ValueError, KeyError, TypeError):  # it is only a memory
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
