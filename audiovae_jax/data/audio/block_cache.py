"""Blocks of bytes in a folder of this machine, the longest unused deleted when it is full."""

import hashlib
import os
import threading
import zlib
from pathlib import Path

from audiovae_jax.errors import DataError
from audiovae_jax.storage import atomic

# A cache is so many folders, by a hash of the block's name; each has its share of the capacity, so that only
# one has to be looked through to know what is full and what is old.
_MOST_FOLDERS = 256
_LEAST_SHARE = 4 << 20  # bytes; smaller caches have fewer folders
_UNSEEN = 1 / 16  # of a share, that a process adds before it looks at what others have added
_KEPT = 3 / 4  # of a share, when room is made


class BlockCache:
    """Blocks by name. Several processes may share the folder.

    Up to three processes keep it under its capacity; more may pass it by a sixteenth each.

    Args:
      folder: made if it is not there.
      capacity: in bytes.
    """

    def __init__(self, folder: str | Path, capacity: int):
        self._folder = Path(folder)
        self._folders = max(1, min(_MOST_FOLDERS, capacity // _LEAST_SHARE))
        self._share = capacity // self._folders
        self._added: dict[Path, int | None] = {}  # since a folder was looked through; None: it never was
        self._lock = threading.Lock()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"config.data.cache={folder}: {error.strerror or error}") from error

    def get(self, name: str) -> bytes | None:
        """The block of that name, if it is there and whole."""
        path = self._path(name)
        try:
            content = path.read_bytes()
            os.utime(path)  # the age by which blocks are deleted
        except OSError:
            return None
        block = content[4:]
        return block if zlib.crc32(block).to_bytes(4, "little") == content[:4] else None

    def put(self, name: str, block: bytes):
        """Keep a block; where the disk does not take it, nothing happens."""
        path = self._path(name)
        size = 4 + len(block)
        if size > _UNSEEN * self._share:  # a cache so small is of no use
            return
        with self._lock:
            try:
                added = self._added.get(path.parent)
                if added is None or added + size > _UNSEEN * self._share:
                    self._make_room(path.parent, size)
                    added = 0
                with atomic.replacing(path) as temporary:
                    temporary.write_bytes(zlib.crc32(block).to_bytes(4, "little") + block)
                self._added[path.parent] = added + size
            except OSError:
                return

    def _make_room(self, folder, size):
        """Delete a folder's oldest blocks, if more than its share would be there before the next look."""
        if not folder.is_dir():
            return
        found, total = [], size
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    stat = entry.stat()
                except OSError:  # another process has just deleted it
                    continue
                found.append((stat.st_mtime_ns, stat.st_size, entry.path))
                total += stat.st_size
        if total <= (_KEPT + _UNSEEN) * self._share:
            return
        for _, of_file, path in sorted(found):
            if total <= _KEPT * self._share:
                break
            Path(path).unlink(missing_ok=True)
            total -= of_file

    def _path(self, name):
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        return self._folder / f"{int(digest[:8], 16) % self._folders:02x}" / f"{digest}.block"
