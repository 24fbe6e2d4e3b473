"""`BucketPath`: a path in a bucket with the methods of `Path` that a run needs.

`as_path` returns a `Path` or a `BucketPath` for a user's path.

Paths of etils are not used. If TensorFlow is installed, they go through it, and it does not support s3://. Otherwise
they rely on cached listings.
"""

import contextlib
import errno
import functools
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from audiovae_jax.storage import atomic, server

_PATIENCE = 60.0  # seconds during which a failing request is retried


class ServerAwayError(OSError):
    """A server did not respond in time; the path may or may not exist."""


class BucketPath:
    """An object or a folder-like prefix: `s3://bucket/run` or `gs://bucket/run`.

    Folders are not created. They exist as soon as there is an object under their name. Objects are written atomically.
    Every failure is an OSError whose `strerror` gives the reason and, for refused access, a remedy.

    Args:
      url: the URL with its scheme.
      patience: seconds during which a request is retried while the network or the server fails.
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
        """Return the same path with requests that are retried for `seconds`."""
        return BucketPath(self._url, seconds)

    def exists(self) -> bool:
        """Return whether there is an object with this name or under it."""
        return self._request(lambda filesystem, key: filesystem.exists(key))

    def is_dir(self) -> bool:
        """Return whether there are objects under this name."""
        return self._request(lambda filesystem, key: filesystem.isdir(key))

    def is_file(self) -> bool:
        """Return whether there is an object with this name."""
        return self._request(lambda filesystem, key: filesystem.isfile(key))

    def iterdir(self) -> Iterator["BucketPath"]:
        """Iterate over entries directly under this name; FileNotFoundError if none."""
        entries = self._request(lambda filesystem, key: filesystem.ls(key, detail=False))
        names = sorted({entry.rstrip("/").rpartition("/")[2] for entry in entries} - {self.name, ""})
        return (self / name for name in names)

    def files(self) -> dict[str, int]:
        """Return `{relative name: bytes}` of all objects under this name, at any depth."""

        def find(filesystem, key):
            found = filesystem.find(key, detail=True)
            start = f"{key.rstrip('/')}/"
            return {name.removeprefix(start): int(e["size"]) for name, e in found.items() if name.startswith(start)}

        return self._request(find)

    def size(self) -> int:
        """Return the size in bytes of the object, or of all objects under this name."""
        files = self.files()
        return sum(files.values()) if files else self._request(lambda filesystem, key: filesystem.size(key))

    def read_bytes(self, size: int | None = None) -> bytes:
        """Return the object's contents, or its first `size` bytes."""
        return self._request(lambda filesystem, key: filesystem.cat_file(key, end=size))

    def read_text(self) -> str:
        """Return the object's contents, decoded as UTF-8."""
        return self.read_bytes().decode()

    def write_bytes(self, content: bytes):
        """Write the object; an existing one is replaced."""
        self._request(lambda filesystem, key: filesystem.pipe_file(key, content))

    def write_text(self, text: str):
        """Write text as UTF-8; an existing object is replaced."""
        self.write_bytes(text.encode())

    def create(self, text: str):
        """Write the object if it does not exist.

        One of several concurrent writers succeeds. On servers without conditional writes, two can succeed at once.

        Raises:
          FileExistsError: the object exists.
        """
        if self.exists():
            raise FileExistsError(errno.EEXIST, "it exists already", self._url)
        self._put_if(text, mode="create")

    def replace(self, text: str, version: str):
        """Replace the object if it still has the given version.

        On S3, one of several concurrent writers succeeds. Elsewhere, two can succeed at once.

        Raises:
          FileExistsError: the object has another version.
        """
        if self.version() != version:
            raise FileExistsError(errno.EEXIST, "it was changed meanwhile", self._url)
        self._put_if(text, **({"IfMatch": version} if self._url.startswith("s3://") else {}))

    def version(self) -> str:
        """Return a string that changes with the object's contents, such as its ETag."""
        info = self._request(lambda filesystem, key: filesystem.info(key))
        return str(info.get("ETag") or info.get("etag") or info.get("generation") or "")

    def modified(self) -> float:
        """Return the time of the last write, in seconds by the server's clock."""
        return self._request(lambda filesystem, key: filesystem.modified(key)).timestamp()

    def unlink(self, missing_ok: bool = False):
        """Remove the object."""
        try:
            self._request(lambda filesystem, key: filesystem.rm_file(key))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def remove_tree(self, first: str | None = None):
        """Remove the objects under this name, `first` before all others."""
        names = sorted(self.files(), key=lambda name: (name != first, name))
        for name in names:
            (self / name).unlink(missing_ok=True)

    def copy_tree(self, target: "BucketPath", last: str | None = None):
        """Copy the objects under this name to `target` on the server, `last` at the end."""
        for name in sorted(self.files(), key=lambda name: (name == last, name)):
            to = (target / name)._key()
            (self / name)._request(lambda filesystem, key, to=to: filesystem.cp_file(key, to))

    def upload(self, folder: Path):
        """Upload the files of a local folder to the same names here."""
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            (self / path.relative_to(folder).as_posix()).upload_file(path)

    def upload_file(self, file: Path):
        """Upload a local file to this name."""
        self._request(lambda filesystem, key: filesystem.put_file(os.fspath(file), key))

    def download(self, folder: Path):
        """Download the objects under this name to a local folder.

        Raises:
          OSError: the objects cannot be fetched, or there are none.
        """
        files = self.files()
        if not files:
            raise FileNotFoundError(errno.ENOENT, "there is nothing under this name", self._url)
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self / name).download_file(folder / name)

    def download_file(self, file: Path):
        """Download the object to a local file."""
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
        """Return `action(file system, key)`, retried while this can help."""

        def request():
            return action(_filesystem(self._url.partition("://")[0], os.getpid()), self._key())

        try:
            return server.persistently(request, self._patience)
        except server.AwayError as error:
            raise self._as_os_error(error.__cause__, final=False) from error.__cause__
        except Exception as error:  # each backend has its own exception types
            raise self._as_os_error(error, final=True) from error

    def _as_os_error(self, error, final):
        if (
            isinstance(error, OSError)
            and error.strerror
            and error.filename is not None
            and not server.is_refusal(error)
        ):
            return error  # an error of a local file, or raised by this module
        if server.is_refusal(error):
            return PermissionError(errno.EACCES, server.explained(error, self._url), self._url)
        if isinstance(error, FileNotFoundError):
            return FileNotFoundError(errno.ENOENT, server.explained(error, self._url), self._url)
        status, _ = server.status_of(error.__cause__ or error)
        if isinstance(error, FileExistsError) or status in (409, 412):
            return FileExistsError(errno.EEXIST, "it exists already", self._url)
        if status == 501:
            return OSError(errno.ENOSYS, server.reason(error), self._url)
        if final:
            return OSError(errno.EIO, server.reason(error), self._url)
        return ServerAwayError(errno.EIO, f"no answer for {self._patience:g} s ({server.reason(error)})", self._url)


def as_path(path: "str | os.PathLike | BucketPath") -> "Path | BucketPath":
    """Return a `BucketPath` for the URL of a bucket, otherwise a `Path`.

    Other path types that support URLs, such as those of etils, are converted by `os.fspath`.

    Raises:
      OSError: the URL is not of a bucket.
    """
    if isinstance(path, BucketPath):
        return path
    text = os.fspath(path) if not isinstance(path, Path) else ""
    if isinstance(text, str) and server.is_url(text):
        if not text.startswith(("s3://", "gs://")):
            hint = "; push_to_hub writes to the hub" if text.startswith("hf://") else ""
            raise OSError(errno.EINVAL, f"only s3:// and gs:// URLs can be written to{hint}", text)
        return BucketPath(text)
    return Path(text or path)


def write_json(path: Path | BucketPath, value: Any):
    """Write a value as JSON, atomically."""
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    if isinstance(path, BucketPath):
        path.write_text(text)
        return
    with atomic.replacing(path) as temporary:
        temporary.write_text(text)


@contextlib.contextmanager
def local_copy(path: "Path | BucketPath", files: "Collection[BucketPath] | None" = None) -> Iterator[Path]:
    """A context with a local path of the same files.

    Files in a bucket are fetched to a temporary folder. Local paths are returned unchanged.

    Args:
      path: a file or folder.
      files: the files under `path` or beside it to fetch; by default all under it.

    Raises:
      OSError: the files cannot be fetched.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="audiovae_jax_") as folder:
        local = Path(folder) / path.name
        if files is not None:
            for file in files:
                target = local.parent / str(file)[len(str(path)) - len(path.name) :]
                target.parent.mkdir(parents=True, exist_ok=True)
                file.download_file(target)
        elif path.is_file():
            path.download_file(local)
        else:
            path.download(local)
        yield local


@functools.lru_cache(maxsize=8)
def _filesystem(scheme, process):
    """Return a file system per process: a forked process lacks its parent's threads."""
    del process
    return server.connect(f"{scheme}://")
