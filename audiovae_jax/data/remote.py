"""Files behind URLs: byte ranges through fsspec, tried again where the network fails, kept where that is asked for."""

import collections
import dataclasses
import hashlib
import io
import os
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from audiovae_jax.errors import DataError
from audiovae_jax.storage import atomic


class UnreachableError(DataError):
    """The network or the server has failed for too long; the message names the URL."""


# Bytes fetched at least, and the unit that is kept.
BLOCK = 1 << 16
# Of every file its first block is kept in memory: all its windows begin with it.
_HEADERS = 4096
_MOST_BLOCKS = 512  # that a reader holds, beside those that it has just fetched
_LONGEST_PAUSE = 5.0  # seconds between two attempts
_NOT_WORTH_A_RETRY = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError)


@dataclasses.dataclass
class Access:
    """How files behind URLs are reached.

    Attributes:
      retry_seconds: for how long a failing request is tried again.
      cache: keeps blocks on this machine's disk; None keeps none.
      fetched_bytes, requests: counted.
    """

    retry_seconds: float = 120.0
    cache: "BlockCache | None" = None
    fetched_bytes: int = 0
    requests: int = 0

    def __post_init__(self):
        self.headers = collections.OrderedDict()
        self.lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL.

    Attributes:
      url: as fsspec takes it: `s3://bucket/name`, `gs://`, `https://`.
      size: in bytes.
      access: how it is reached.
      mark: changes with its content.
    """

    url: str
    size: int
    access: Access = dataclasses.field(compare=False, repr=False)
    mark: str = ""

    def __str__(self) -> str:
        return self.url

    @property
    def suffix(self) -> str:
        return Path(self.url).suffix

    def open(self) -> "RangeReader":
        """A seekable reader of its bytes."""
        return RangeReader(self)


def is_url(root: str) -> bool:
    """Whether a root lies elsewhere; `file://` does not."""
    return "://" in root and not root.startswith("file://")


def local_path(root: str) -> str:
    """A path as the operating system takes it, of `file://` URLs too."""
    return root.removeprefix("file://")


def list_files(url: str, access: Access) -> Iterator[tuple[str, int, str]]:
    """`(url, size, mark)` of the files under `url`, sorted; the mark changes with a file's content.

    Raises:
      DataError: there is nothing there, or it cannot be reached.
    """
    filesystem, path = _filesystem(url)
    found = _persistently(lambda: filesystem.find(path, detail=True), url, access)
    if not found:
        raise DataError(f"config.data.root={url}: there is nothing there")
    for name in sorted(found):
        entry = found[name]
        mark = next(
            (str(entry[key]) for key in ("ETag", "etag", "mtime", "LastModified", "updated") if key in entry), ""
        )
        yield filesystem.unstrip_protocol(name), int(entry["size"] or 0), mark


def open_url(url: str, access: Access) -> RemoteFile:
    """The file behind `url`; DataError where there is none."""
    filesystem, path = _filesystem(url)
    return RemoteFile(url, int(_persistently(lambda: filesystem.size(path), url, access)), access)


def exists(url: str, access: Access) -> bool:
    """Whether there is a file behind `url`."""
    filesystem, path = _filesystem(url)
    return _persistently(lambda: filesystem.exists(path), url, access)


def read_bytes(url: str, access: Access) -> bytes:
    """The whole of a small file."""
    filesystem, path = _filesystem(url)
    return _persistently(lambda: filesystem.cat_file(path), url, access)


class RangeReader(io.RawIOBase):
    """A file's bytes, fetched by range as they are read.

    What reads it may be C code that loses an exception; `error` keeps the first, and nothing is read after it.
    """

    def __init__(self, file: RemoteFile):
        self._file, self._position, self._blocks = file, 0, {}
        self.error: Exception | None = None
        self._ahead = BLOCK

    def expect(self, size: int):
        """Of what is read next, this many bytes at once are worth fetching."""
        self._ahead = max(BLOCK, size)

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._position

    def seek(self, offset, whence=os.SEEK_SET):
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._file.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer):
        if self.error is not None:
            return 0
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._file.size - self._position))
        done = 0
        try:
            while done < count:
                index, offset = divmod(self._position + done, BLOCK)
                if index not in self._blocks:
                    self._fetch(index, max(count - done, self._ahead) + offset)
                piece = self._blocks[index][offset : offset + count - done]
                view[done : done + len(piece)] = piece
                done += len(piece)
        except Exception as error:
            self.error = error
            return 0
        self._position += done
        return done

    def _fetch(self, first, size):
        """Have `size` bytes from block `first` on, without what is there already."""
        file, access = self._file, self._file.access
        last = min(-(-file.size // BLOCK), first + -(-size // BLOCK))
        for index in range(first, last):
            block = access.headers.get((file.url, file.size)) if index == 0 else None
            if block is None and access.cache is not None:
                block = access.cache.get(file, index)
            if block is not None:
                self._blocks[index] = block
        if first in self._blocks:
            return
        stop = next((index for index in range(first, last) if index in self._blocks), last)
        filesystem, path = _filesystem(file.url)
        start, end = first * BLOCK, min(stop * BLOCK, file.size)
        data = _persistently(lambda: filesystem.cat_file(path, start=start, end=end), file.url, access)
        if len(data) != end - start:
            raise DataError(f"{file.url}: {len(data)} bytes came where {end - start} were asked for; has it changed?")
        with access.lock:
            access.requests += 1
            access.fetched_bytes += len(data)
        while len(self._blocks) > _MOST_BLOCKS:
            self._blocks.pop(next(iter(self._blocks)))
        for index in range(first, stop):
            block = data[(index - first) * BLOCK : (index - first + 1) * BLOCK]
            self._blocks[index] = block
            if access.cache is not None:
                access.cache.put(file, index, block)
        if first == 0:
            with access.lock:
                access.headers[file.url, file.size] = self._blocks[0]
                while len(access.headers) > _HEADERS:
                    access.headers.popitem(last=False)


class BlockCache:
    """Blocks of remote files in a folder of this machine, the longest unused deleted when it is full.

    Several processes may share the folder; each counts what it finds there at its start and what it adds.

    Args:
      folder: made if it is not there.
      capacity: in bytes.
    """

    def __init__(self, folder: str | Path, capacity: int):
        self._folder, self._capacity = Path(folder), capacity
        self._lock = threading.Lock()
        self._sizes = collections.OrderedDict()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            found = [(entry.stat(), entry) for entry in self._folder.rglob("*.block")]
        except OSError as error:
            raise DataError(f"config.data.cache={folder}: {error.strerror or error}") from error
        for stat, entry in sorted(found, key=lambda pair: pair[0].st_mtime_ns):
            self._sizes[entry] = stat.st_size
        self._total = sum(self._sizes.values())

    def get(self, file: RemoteFile, index: int) -> bytes | None:
        path = self._path(file, index)
        try:
            block = path.read_bytes()
        except OSError:
            return None
        if len(block) != min(BLOCK, file.size - index * BLOCK):
            return None
        with self._lock:
            if path in self._sizes:
                self._sizes.move_to_end(path)
        return block

    def put(self, file: RemoteFile, index: int, block: bytes):
        path = self._path(file, index)
        with self._lock:
            try:
                with atomic.replacing(path) as temporary:
                    temporary.write_bytes(block)
            except OSError:  # a cache that cannot be written to is none
                return
            self._total += len(block) - self._sizes.pop(path, 0)
            self._sizes[path] = len(block)
            while self._total > self._capacity:
                oldest, size = self._sizes.popitem(last=False)
                self._total -= size
                oldest.unlink(missing_ok=True)

    def _path(self, file, index):
        name = hashlib.sha256(f"{file.url} {file.size} {index}".encode()).hexdigest()[:32]
        return self._folder / name[:2] / f"{name}.block"


def _filesystem(url):
    try:
        import fsspec

        return fsspec.core.url_to_fs(url)
    except ImportError as error:
        scheme = url.partition("://")[0]
        extra = {"s3": "s3", "gs": "gcs", "gcs": "gcs"}.get(scheme)
        remedy = f"pip install 'audiovae-jax[{extra}]'" if extra else "install the package that fsspec names"
        raise DataError(f"{url}: {scheme}:// needs a package that is not installed ({error}); {remedy}") from error
    except ValueError as error:
        raise DataError(f"{url}: {error}") from error


def _persistently(request, url, access):
    """What `request()` returns; tried again, with growing pauses, while the network or the server fails."""
    began, pause = time.monotonic(), 0.1
    while True:
        try:
            return request()
        except _NOT_WORTH_A_RETRY as error:
            raise DataError(f"{url}: {_reason(error)}") from error
        except Exception as error:  # every backend has exceptions of its own
            if time.monotonic() - began + pause > access.retry_seconds:
                raise UnreachableError(
                    f"{url}: not reached within data.retry_seconds={access.retry_seconds:g} ({_reason(error)})"
                ) from error
        time.sleep(pause * random.uniform(0.5, 1.0))
        pause = min(2 * pause, _LONGEST_PAUSE)


def _reason(error):
    return " ".join(str(error).split()) or type(error).__name__
