"""`BucketPath`: a path in a bucket, with what a run needs of a `pathlib.Path`; `as_path` makes whichever is meant.

Etils' paths are not used: where TensorFlow is installed they go through it, which knows no s3://, and otherwise
they believe listings that they made before.
"""

import contextlib
import errno
import functools
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from audiovae_jax.storage import atomic, server

_PATIENCE = 60.0  # seconds for which a request that fails is tried again


class ServerAwayError(OSError):
    """A server that did not answer for as long as was waited; it says nothing of what is there."""


class BucketPath:
    """An object, or the objects under a name that is like a folder's: `s3://bucket/run` or `gs://bucket/run`.

    Folders are not made, they are there with the first object in them; an object is written whole or not at all.
    Whatever goes wrong is an OSError whose `strerror` says what to do.

    Args:
      url: with its scheme.
      patience: seconds for which a request is tried again while the network or the server fails.
    """

    def __init__(self, url: str, patience: float = _PATIENCE):
        scheme, _, rest = str(url).partition("://")
        self._url = f"{scheme}://{'/'.join(part for part in rest.split('/') if part)}"
        self._patience = patience

    def __str__(self) -> str:
        return self._url

    def __repr__(self) -> str:
        return f"BucketPath({self._url!r})"

    def __eq__(self, other: Any) -> bool:
        return isinstance(other, BucketPath) and self._url == other._url

    def __hash__(self) -> int:
        return hash(self._url)

    def __truediv__(self, name: str | PurePosixPath) -> "BucketPath":
        return BucketPath(f"{self._url}/{name}", self._patience)

    @property
    def name(self) -> str:
        return self._url.rpartition("/")[2]

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> "BucketPath":
        return BucketPath(self._url.rpartition("/")[0], self._patience)

    def patient(self, seconds: float) -> "BucketPath":
        """The same path, whose requests are tried again for so long."""
        return BucketPath(self._url, seconds)

    def exists(self) -> bool:
        """Whether there is an object of this name, or one under it."""
        return self._request(lambda filesystem, key: filesystem.exists(key))

    def is_dir(self) -> bool:
        """Whether there are objects under this name."""
        return self._request(lambda filesystem, key: filesystem.isdir(key))

    def is_file(self) -> bool:
        """Whether there is an object of this name."""
        return self._request(lambda filesystem, key: filesystem.isfile(key))

    def iterdir(self) -> Iterator["BucketPath"]:
        """What a folder would hold; FileNotFoundError where there is nothing."""
        entries = self._request(lambda filesystem, key: filesystem.ls(key, detail=False))
        names = sorted({entry.rstrip("/").rpartition("/")[2] for entry in entries} - {self.name, ""})
        return (self / name for name in names)

    def files(self) -> dict[str, int]:
        """`{name under this one: bytes}` of all objects, at any depth."""

        def find(filesystem, key):
            found = filesystem.find(key, detail=True)
            start = f"{key.rstrip('/')}/"
            return {name.removeprefix(start): int(e["size"]) for name, e in found.items() if name.startswith(start)}

        return self._request(find)

    def size(self) -> int:
        """Bytes, of the object or of all under it."""
        files = self.files()
        return sum(files.values()) if files else self._request(lambda filesystem, key: filesystem.size(key))

    def read_bytes(self) -> bytes:
        """The object's contents."""
        return self._request(lambda filesystem, key: filesystem.cat_file(key))

    def read_text(self) -> str:
        """The object's contents as UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes):
        """Put the object there, in place of one that is."""
        self._request(lambda filesystem, key: filesystem.pipe_file(key, content))

    def write_text(self, text: str):
        """`write_bytes` of UTF-8."""
        self.write_bytes(text.encode())

    def create(self, text: str):
        """Put the object there, unless there is one.

        Of several writers one succeeds; a server that knows no conditions lets two of the same moment succeed.

        Raises:
          FileExistsError: there is one.
        """
        if self.exists():
            raise FileExistsError(errno.EEXIST, "there is one already", self._url)
        self._put_if(text, mode="create")

    def replace(self, text: str, version: str):
        """Put the object in place of that of a `version`.

        On S3 of several writers one succeeds; elsewhere two of the same moment may.

        Raises:
          FileExistsError: what is there is another one.
        """
        if self.version() != version:
            raise FileExistsError(errno.EEXIST, "there is another one already", self._url)
        self._put_if(text, **({"IfMatch": version} if self._url.startswith("s3://") else {}))

    def version(self) -> str:
        """What changes with the object's contents; S3's ETag where there is one."""
        info = self._request(lambda filesystem, key: filesystem.info(key))
        return str(info.get("ETag") or info.get("etag") or info.get("generation") or "")

    def modified(self) -> float:
        """When the object was last written, in seconds by the server's clock."""
        return self._request(lambda filesystem, key: filesystem.modified(key)).timestamp()

    def unlink(self, missing_ok: bool = False):
        """Remove the object."""
        try:
            self._request(lambda filesystem, key: filesystem.rm_file(key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self, first: str | None = None):
        """Remove the objects under this name, beginning with `first`."""
        names = sorted(self.files(), key=lambda name: (name != first, name))
        for name in names:
            (self / name).unlink(missing_ok=True)

    def copy_tree(self, target: "BucketPath", last: str | None = None):
        """Copy the objects under this name to the same names under `target`, at the server; `last` at the end."""
        for name in sorted(self.files(), key=lambda name: (name == last, name)):
            to = (target / name)._key()
            (self / name)._request(lambda filesystem, key, to=to: filesystem.cp_file(key, to))

    def upload(self, folder: Path, last: str | None = None):
        """Put the files under a local folder to the same names under this one; `last` at the end."""
        names = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for name in sorted(names, key=lambda name: (name == last, name)):
            (self / name).upload_file(folder / name)

    def upload_file(self, file: Path):
        """Put a local file's contents to this name."""
        self._request(lambda filesystem, key: filesystem.put_file(os.fspath(file), key))

    def download(self, folder: Path):
        """Fetch the objects under this name into a local folder.

        Raises:
          OSError: they cannot be fetched, or there are none.
        """
        files = self.files()
        if not files:
            raise FileNotFoundError(errno.ENOENT, "there is nothing under this name", self._url)
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self / name).download_file(folder / name)

    def download_file(self, file: Path):
        """Fetch the object into a local file."""
        self._request(lambda filesystem, key: filesystem.get_file(key, os.fspath(file)))

    def _key(self):
        return self._url.partition("://")[2]

    def _put_if(self, text, **condition):
        try:
            self._request(lambda filesystem, key: filesystem.pipe_file(key, text.encode(), **condition))
        except OSError as error:
            if error.errno != errno.ENOSYS:
                raise
            self.write_text(text)

    def _request(self, action):
        """What `action(file system, key)` returns, tried again while that can help."""

        def request():
            return action(_filesystem(self._url.partition("://")[0], os.getpid()), self._key())

        try:
            return server.persistently(request, self._patience)
        except server.AwayError as error:
            raise self._as_os_error(error.__cause__, final=False) from error.__cause__
        except Exception as error:  # every backend has exceptions of its own
            raise self._as_os_error(error, final=True) from error

    def _as_os_error(self, error, final):
        if (
            isinstance(error, OSError)
            and error.strerror
            and error.filename is not None
            and not server.is_refusal(error)
        ):
            return error  # of a local file, or ours
        if server.is_refusal(error):
            return PermissionError(errno.EACCES, server.explained(error, self._url), self._url)
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(errno.ENOENT, server.explained(error, self._url), self._url)
        status, _ = server.status_of(error.__cause__ or error)
        if isinstance(error, FileExistsError) or status in (409, 412):
            return FileExistsError(errno.EEXIST, "there is one already", self._url)
        if status == 501:
            return OSError(errno.ENOSYS, server.reason(error), self._url)
        if final:
            return OSError(errno.EIO, server.reason(error), self._url)
        return ServerAwayError(errno.EIO, f"not reached for {self._patience:g} s ({server.reason(error)})", self._url)


def as_path(path: "str | os.PathLike | BucketPath") -> "Path | BucketPath":
    """A path in a bucket for a URL of one, and one on this machine for all else.

    Other kinds of paths that know URLs, as etils', are taken by what they print.

    Raises:
      OSError: the URL is of no bucket.
    """
    if isinstance(path, BucketPath):
        return path
    text = os.fspath(path) if not isinstance(path, Path) else ""
    if isinstance(text, str) and server.is_url(text):
        if not text.startswith(("s3://", "gs://")):
            raise OSError(errno.EINVAL, "of URLs, those of s3:// and gs:// can be written to", text)
        return BucketPath(text)
    return Path(text or path)


def write_json(path: Path | BucketPath, value: Any):
    """Write JSON so that the file is either whole or not there."""
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    if isinstance(path, BucketPath):
        path.write_text(text)
        return
    with atomic.replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def local_copy(path: "Path | BucketPath") -> Iterator[Path]:
    """The same files on this machine: fetched, for as long as it is open, where they are in a bucket.

    Raises:
      OSError: they cannot be fetched.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="audiovae_jax_") as folder:
        local = Path(folder) / path.name
        if path.is_file():
            path.download_file(local)
        else:
            path.download(local)
        yield local


@functools.lru_cache(maxsize=8)
def _filesystem(scheme, process):
    """One for all threads of a process; a forked one has none of its parent's threads."""
    del process
    return server.connect(f"{scheme}://")
