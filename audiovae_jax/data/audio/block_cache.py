"""A disk cache of blocks of bytes that deletes the least recently used ones."""

import hashlib
import os
import threading
import zlib
from pathlib import Path

from audiovae_jax.errors import DataError
from audiovae_jax.storage import atomic

# Blocks are spread over this many folders by a hash of their name. Each folder has a share of the capacity, so that
# making room scans one folder only.
_MAX_FOLDERS = 256
_MIN_SHARE = 4 << 20  # bytes per folder; smaller caches have fewer folders
_RESCAN_FRACTION = 1 / 16  # fraction of a share that a process adds before it scans the folder again
_KEPT_FRACTION = 3 / 4  # fraction of a share that is kept when making room


class BlockCache:
    """A cache of named blocks, whose folder several processes may share.

    With up to three processes, the cache stays below its capacity. Each further process may exceed it by a sixteenth.

    Args:
      folder: created if missing.
      capacity: in bytes.
    """

    def __init__(self, folder: str | Path, capacity: int):
        self._folder = Path(folder)
        self._folders = max(1, min(_MAX_FOLDERS, capacity // _MIN_SHARE))
        self._share = capacity // self._folders
        self._added: dict[Path, int | None] = {}  # bytes added since a folder was scanned
        self._lock = threading.Lock()
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"config.data.cache={folder}: {error.strerror or error}") from error

    def get(self, name: str) -> bytes | None:
        """Return the block of that name, or None if it is missing or corrupt."""
        path = self._path(name)
        try:
            content = path.read_bytes()
            os.utime(path)  # blocks are deleted by time of last use
        except OSError:
            return None
        block = content[4:]
        return block if zlib.crc32(block).to_bytes(4, "little") == content[:4] else None

    def put(self, name: str, block: bytes):
        """Store a block; errors of the disk are ignored."""
        path = self._path(name)
        size = 4 + len(block)
        if size > _RESCAN_FRACTION * self._share:  # the cache is too small to be of use
            return
        with self._lock:
            try:
                added = self._added.get(path.parent)
                if added is None or added + size > _RESCAN_FRACTION * self._share:
                    self._make_room(path.parent, size)
                    added = 0
                with atomic.replacing(path) as temporary:
                    temporary.write_bytes(zlib.crc32(block).to_bytes(4, "little") + block)
                self._added[path.parent] = added + size
            except OSError:
                return

    def _make_room(self, folder, size):
        """Delete a folder's oldest blocks if it may outgrow its share."""
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
        if total <= (_KEPT_FRACTION + _RESCAN_FRACTION) * self._share:
            return
        for _, of_file, path in sorted(found):
            if total <= _KEPT_FRACTION * self._share:
                break
            Path(path).unlink(missing_ok=True)
            total -= of_file

    def _path(self, name):
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:32]
        return self._folder / f"{int(digest[:8], 16) % self._folders:02x}" / f"{digest}.block"
