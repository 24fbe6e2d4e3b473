"""Files behind URLs, read by byte range through fsspec, with retries and caches.

Servers and credentials are described in `storage.server`.
"""

import collections
import dataclasses
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from audiovae_jax.data.audio.block_cache import BlockCache
from audiovae_jax.data.formats.reader import Reader
from audiovae_jax.errors import DataError, RootError
from audiovae_jax.storage import server
from audiovae_jax.storage.server import is_url as is_url  # re-exported


class RemoteError(DataError):
    """A file behind a URL that cannot be read.

    Its path is the URL, and its detail the reason.
    """

    def __init__(self, url: str, reason: str):
        super().__init__(path=url, detail=reason)


class UnreachableError(RemoteError):
    """The network or the server failed for too long."""


class RefusedError(RemoteError):
    """The server refuses a file, or the file has changed; either may be temporary."""


# Bytes of a block, the unit of fetching and caching.
BLOCK = 1 << 15
# Decoders read the same blocks each time they open a file. These stay in memory, with a limit per file and in total.
_OPENING_BLOCKS, _MAX_OPENING_BLOCKS = 8, 4096
_MAX_BLOCKS = 1024  # maximum number of blocks that a reader keeps, besides those just fetched
_MAX_REQUEST = 1 << 20  # bytes per request of sequential reads, such as those of a seeking MP3 decoder
# How long a file that existed before is retried: after a restart, a server may not have all files at once.
_GONE_SECONDS = 10.0


@dataclasses.dataclass
class Access:
    """Access to files behind URLs: retries, caches and counters.

    Attributes:
      retry_seconds: how long a failing request is retried.
      cache: disk cache of blocks; None for none.
      fetched_bytes, requests: counters. The bytes of listings are not counted.
    """

    retry_seconds: float = 120.0
    cache: BlockCache | None = None
    fetched_bytes: int = 0
    requests: int = 0

    def __post_init__(self):
        self._openings = collections.OrderedDict()
        self._filesystems = {}
        self._listing = None, {}
        self._lock = threading.Lock()

    def count(self, size: int):
        """Count a request that fetched `size` bytes."""
        with self._lock:
            self.requests += 1
            self.fetched_bytes += size

    def opening(self, file: "RemoteFile", index: int) -> bytes | None:
        """Return a block from memory, or None."""
        with self._lock:
            block = self._openings.get((file, index))
            if block is not None:
                self._openings.move_to_end((file, index))
            return block

    def keep_opening(self, file: "RemoteFile", index: int, block: bytes):
        """Keep a block in memory, in place of the least recently used one."""
        with self._lock:
            self._openings[file, index] = block
            while len(self._openings) > _MAX_OPENING_BLOCKS:
                self._openings.popitem(last=False)

    def listing(self, url: str, ask: Callable[[], dict]) -> dict:
        """Return the listing of `url`; only the last one is kept.

        So recognising and scanning a data set take one listing.
        """
        if self._listing[0] != url:
            self._listing = url, ask()
            self.count(0)
        return self._listing[1]

    def filesystem(self, url: str):
        """Return `(file system, path in it)` for a URL.

        The threads of a process share one file system per server, since each file system opens its own connections.
        """
        scheme, _, rest = url.partition("://")
        place = f"{scheme}://{rest.partition('/')[0]}"
        with self._lock:
            # One per process, since a forked process does not inherit its parent's threads.
            filesystem = self._filesystems.get((os.getpid(), place))
            if filesystem is None:
                try:
                    filesystem = server.connect(url)
                except OSError as error:
                    raise RemoteError(url, error.strerror) from error
                self._filesystems[os.getpid(), place] = filesystem
        return filesystem, filesystem._strip_protocol(url)


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file behind a URL.

    Attributes:
      url: in fsspec's form: `s3://bucket/name`, `gs://`, `https://`.
      size: in bytes.
      access: retries, caches and counters.
      mark: a string that changes with the content; empty if the server has none.
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
        """Return a seekable reader of the file's bytes."""
        return RangeReader(self)


def read_timeout(seconds: float, retry_seconds: float, names: Iterable[str]) -> float:
    """Return the seconds after which a read of one of these files times out.

    For URLs the retry time is added, so that retries end before the timeout. 0 stays 0, which is no timeout.
    """
    return seconds and seconds + retry_seconds * any(map(is_url, names))


def local_path(root: str) -> str:
    """Convert a path or a `file://` URL to a path of the operating system."""
    if not root.startswith("file://"):
        return os.path.expanduser(root)
    return urllib.parse.unquote(root.removeprefix("file://").removeprefix("localhost"))


def list_files(url: str, access: Access) -> Iterator[tuple[str, RemoteFile]]:
    """Iterate over `(name under url, file)` of the files under `url`.

    The order is the same as for a folder on disk.

    Raises:
      DataError: there are no files, or the server cannot be reached.
    """
    filesystem, path = access.filesystem(url.rstrip("/"))
    found = access.listing(url, lambda: _persistently(lambda: filesystem.find(path, detail=True), url, access))
    names = {entry.removeprefix(path).strip("/"): entry for entry in found if entry.startswith(f"{path}/")}
    if not names:
        raise RootError(url, "there is nothing there")
    for name in sorted(names, key=lambda name: name.split("/")):
        entry = found[names[name]]
        yield name, RemoteFile(f"{url.rstrip('/')}/{name}", int(entry["size"] or 0), access, _mark(entry))


def open_url(url: str, access: Access) -> RemoteFile:
    """Return the file behind `url`; raises RemoteError if there is none."""
    filesystem, path = access.filesystem(url)
    entry = _persistently(lambda: filesystem.info(path), url, access)
    access.count(0)
    if entry.get("type") == "directory" or entry.get("size") is None:
        raise RemoteError(url, "this is not a file, or the server does not report its size")
    return RemoteFile(url, int(entry["size"]), access, _mark(entry))


def exists(url: str, access: Access) -> bool:
    """Return whether there is a file behind `url`."""
    filesystem, path = access.filesystem(url)
    access.count(0)
    return _persistently(lambda: filesystem.exists(path), url, access)


def read_bytes(url: str, access: Access) -> bytes:
    """Read a whole file at once; meant for small files."""
    filesystem, path = access.filesystem(url)
    content = _persistently(lambda: filesystem.cat_file(path), url, access)
    access.count(len(content))
    return content


class RangeReader(Reader):
    """A reader that fetches a file's bytes by range.

    C code that reads from it may lose an exception, so `error` keeps the first one. After it, reads return nothing.
    """

    def __init__(self, file: RemoteFile):
        super().__init__(file.size)
        self._file, self._blocks = file, {}
        self.error: Exception | None = None
        self._ahead, self._run, self._next = BLOCK, BLOCK, None
        self._opening = _OPENING_BLOCKS  # how many more blocks may be kept for the file's next reader

    def expect(self, size: int):
        """Set the number of bytes to fetch at once in the next reads."""
        self._ahead = max(BLOCK, size)
        self._opening = 0

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
        """Fetch `size` bytes from block `first` on, up to the next available block."""
        file, access = self._file, self._file.access
        while len(self._blocks) > _MAX_BLOCKS:
            self._blocks.pop(next(iter(self._blocks)))
        self._run = min(2 * self._run, _MAX_REQUEST) if first == self._next else BLOCK
        last = min(-(-file.size // BLOCK), first + -(-max(size, self._run) // BLOCK))
        for index in range(first, last):
            if index not in self._blocks and (block := self._kept(index)) is not None:
                self._blocks[index] = block
        if first in self._blocks:
            return
        stop = next((index for index in range(first, last) if index in self._blocks), last)
        data = _range(file, first * BLOCK, min(stop * BLOCK, file.size))
        self._next = stop
        for index in range(first, stop):
            block = data[(index - first) * BLOCK : (index - first + 1) * BLOCK]
            self._blocks[index] = block
            if self._opening > 0:
                self._opening -= 1
                access.keep_opening(file, index, block)
            if access.cache is not None:
                access.cache.put(_cache_key(file, index), block)

    def _kept(self, index):
        file, access = self._file, self._file.access
        block = access.opening(file, index)
        if block is None and access.cache is not None:
            block = access.cache.get(_cache_key(file, index))
        return block if block is not None and len(block) == min(BLOCK, file.size - index * BLOCK) else None


def _cache_key(file, index):
    return f"{file.url} {file.size} {file.mark} {BLOCK} {index}"


def _range(file, start, end):
    """Fetch bytes `start` to `end`; raises RemoteError if the file has changed."""
    filesystem, path = file.access.filesystem(file.url)
    if hasattr(filesystem, "call_s3") and file.mark:
        request = _s3_range(filesystem, path, start, end, file.mark)
    else:

        def request():
            return filesystem.cat_file(path, start=start, end=end)

    data = _persistently(request, file.url, file.access, _GONE_SECONDS)
    file.access.count(len(data))
    if len(data) != end - start:
        raise RemoteError(file.url, f"{len(data)} bytes were received instead of {end - start}; has it changed?")
    return data


def _s3_range(filesystem, path, start, end, etag):
    """Return a request that fails if the object has changed.

    `cat_file` has no such condition.
    """
    from fsspec import asyn

    bucket, key, _ = filesystem.split_path(path)

    async def fetch():
        answer = await filesystem._call_s3(
            "get_object", Bucket=bucket, Key=key, Range=f"bytes={start}-{end - 1}", IfMatch=f'"{etag}"'
        )
        try:
            return await answer["Body"].read()
        finally:
            answer["Body"].close()

    return lambda: asyn.sync(filesystem.loop, fetch)


def _mark(entry):
    """Return the mark of a listing's entry, which changes with the file's content."""
    keys = ("ETag", "etag", "md5Hash", "mtime", "LastModified", "updated", "created")
    return next((str(entry[key]).strip('"') for key in keys if entry.get(key)), "")


def _persistently(request, url, access, gone_seconds=0.0):
    """Return `request()`, retried while the network or the server fails.

    A missing file is retried for `gone_seconds`.
    """
    gone = None

    def ends(error, pause):
        nonlocal gone
        if isinstance(error, FileNotFoundError) and gone is None:
            gone = time.monotonic()
        return server.is_final(error) and (gone is None or time.monotonic() - gone + pause > gone_seconds)

    try:
        return server.persistently(request, access.retry_seconds, ends)
    except server.AwayError as error:
        reason = f"not reached within data.retry_seconds={access.retry_seconds:g} ({server.reason(error.__cause__)})"
        raise UnreachableError(url, reason) from error.__cause__
    except Exception as error:  # every backend has its own exceptions
        raise RefusedError(url, server.explained(error, url)) from error
