"""Visitors' sessions, each with a secret folder that is removed at its end."""

import contextlib
import dataclasses
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audiovae_jax.errors import DataError

_KEPT = 2  # results per kind: the last, and the one before, which may still be downloading
_IDLE = 6 * 3600.0  # seconds without a request after which a session ends
_BROKEN = 3600.0  # seconds after which an unfinished upload is removed


class Gone(DataError):
    """The visitor has left, or the server stops."""

    def __init__(self):
        super().__init__("stopped: nobody waits for the result any more")


@dataclasses.dataclass
class Session:
    """The session of one visitor.

    Attributes:
      folder: folder for the visitor's results.
      is_gone: whether the visitor has left or the server stops.
      used: monotonic time of the last use, in seconds.
      memory: the last results, by kind.
    """

    folder: Path
    is_gone: bool = False
    used: float = dataclasses.field(default_factory=time.monotonic)
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)
    _made: dict[str, list[Path]] = dataclasses.field(default_factory=dict)

    def fresh_folder(self, kind: str) -> Path:
        """Create an empty folder for a result.

        All but the last result of the same kind are removed.

        Raises:
          Gone: the visitor has left, e.g. while a model was being loaded.
        """
        if self.is_gone:
            raise Gone
        made = self._made.setdefault(kind, [])
        while len(made) >= _KEPT:
            shutil.rmtree(made.pop(0), ignore_errors=True)
        made.append(self.folder / secrets.token_hex(8))
        made[-1].mkdir(parents=True)
        if self.is_gone:  # the visitor left in the meantime
            shutil.rmtree(self.folder, ignore_errors=True)
            raise Gone
        return made[-1]

    def watched(self, progress: Callable[[float, str], None]) -> Callable[[float, str], None]:
        """Wrap `progress` so that it raises `Gone` once the visitor has left."""

        def report(share, text):
            if self.is_gone:
                raise Gone
            self.used = time.monotonic()
            progress(share, text)

        return report


class Sessions:
    """The sessions of all visitors, by key.

    Args:
      folder: the server's folder, which also contains the uploads.
    """

    def __init__(self, folder: Path):
        self.folder = Path(os.path.realpath(folder))
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def session(self, key: str) -> Session:
        """Return the session of a key, created on first use."""
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                session = self._sessions[key] = Session(self.folder / "made" / secrets.token_hex(16), self._is_closed)
            session.used = time.monotonic()
        return session

    def sweep(self):
        """End idle sessions and remove unfinished uploads."""
        now = time.monotonic()
        with self._lock:
            idle = [key for key, session in self._sessions.items() if now - session.used > _IDLE]
        for key in idle:
            self.forget(key)
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # already removed, or a folder that is not empty
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _BROKEN:
                        (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)

    def forget(self, key: str):
        """End a session and remove its files."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.is_gone = True
            shutil.rmtree(session.folder, ignore_errors=True)

    def close(self):
        """Stop the work of all sessions."""
        with self._lock:
            self._is_closed = True
            for session in self._sessions.values():
                session.is_gone = True

    def public(self, text: str) -> str:
        """Remove the folders of the server's files from a text, keeping the file names."""
        return re.sub(re.escape(str(self.folder)) + r"/(?:[0-9a-f]{8,}/|made/)*", "", text)

    def uploaded(self, path: Any, control: str = "Audio") -> Path:
        """Return the path of an uploaded file.

        Args:
          path: path given by the visitor, in the server's folder; gradio refuses others.
          control: label of the page's control, for errors.

        Raises:
          DataError: no path was given, or there is no such file.
        """
        if not path:
            raise DataError(f'there is no file under "{control}" yet; upload or record one, or use the example clip')
        if not os.path.isfile(path):
            raise DataError(f'the file under "{control}" was removed; upload it again')
        return Path(path)
