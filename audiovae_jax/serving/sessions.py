"""What is made for one visitor: a folder that nobody else knows the name of, and gone when the visitor is."""

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

_KEPT = 2  # results of a kind: the last, and the one before, which may still be on its way to the visitor
_IDLE = 6 * 3600.0  # seconds after which a visitor is taken to have left
_BROKEN = 3600.0  # seconds after which an upload that has not come to its end is


class Gone(DataError):
    """The visitor has left, or the server stops."""

    def __init__(self):
        super().__init__("stopped: nobody waits for the result any more")


@dataclasses.dataclass
class Session:
    """One visitor.

    Attributes:
      folder: for files.
      is_gone: whether nobody waits any more.
      used: when it was last asked for, in seconds.
      memory: the last results, by kind.
    """

    folder: Path
    is_gone: bool = False
    used: float = dataclasses.field(default_factory=time.monotonic)
    memory: dict[str, Any] = dataclasses.field(default_factory=dict)
    _made: dict[str, list[Path]] = dataclasses.field(default_factory=dict)

    def fresh_folder(self, kind: str) -> Path:
        """An empty folder for a result of a kind; all but the last of that kind are removed.

        Raises:
          Gone: nobody waits, as when the visitor left while a model was loaded.
        """
        if self.is_gone:
            raise Gone
        made = self._made.setdefault(kind, [])
        while len(made) >= _KEPT:
            shutil.rmtree(made.pop(0), ignore_errors=True)
        made.append(self.folder / secrets.token_hex(8))
        made[-1].mkdir(parents=True)
        if self.is_gone:  # since a moment ago
            shutil.rmtree(self.folder, ignore_errors=True)
            raise Gone
        return made[-1]

    def watched(self, progress: Callable[[float, str], None]) -> Callable[[float, str], None]:
        """`progress`, which ends the work by raising `Gone` once nobody waits for it."""

        def report(share, text):
            if self.is_gone:
                raise Gone
            self.used = time.monotonic()
            progress(share, text)

        return report


class Sessions:
    """All visitors, by what they are known by.

    Args:
      folder: of this server's own, which uploads are in too.
    """

    def __init__(self, folder: Path):
        self.folder = Path(os.path.realpath(folder))
        self._sessions: dict[str, Session] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def session(self, key: str) -> Session:
        """That of a key."""
        with self._lock:
            session = self._sessions.get(key)
            if session is None:
                session = self._sessions[key] = Session(self.folder / "made" / secrets.token_hex(16), self._is_closed)
            session.used = time.monotonic()
        return session

    def sweep(self):
        """Forget those who were not heard of for hours, and remove what uploads have left that were broken off."""
        now = time.monotonic()
        with self._lock:
            idle = [key for key, session in self._sessions.items() if now - session.used > _IDLE]
        for key in idle:
            self.forget(key)
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                with contextlib.suppress(OSError):  # it has just gone, or is a folder with files
                    if time.time() - entry.stat(follow_symlinks=False).st_mtime > _BROKEN:
                        (os.rmdir if entry.is_dir(follow_symlinks=False) else os.unlink)(entry.path)

    def forget(self, key: str):
        """End a visitor's work and remove the files."""
        with self._lock:
            session = self._sessions.pop(key, None)
        if session is not None:
            session.is_gone = True
            shutil.rmtree(session.folder, ignore_errors=True)

    def close(self):
        """End everyone's work."""
        with self._lock:
            self._is_closed = True
            for session in self._sessions.values():
                session.is_gone = True

    def public(self, text: str) -> str:
        """A text without the places of this server's files; of each the name remains."""
        return re.sub(re.escape(str(self.folder)) + r"/(?:[0-9a-f]{8,}/|made/)*", "", text)

    def uploaded(self, path: Any, control: str = "Audio") -> Path:
        """A path that a visitor names, which must be of a file that was uploaded here.

        Args:
          path: of the file.
          control: label of the page's control that it comes from, for errors.

        Raises:
          DataError: it is none, or none was given.
        """
        if not path:
            raise DataError(f'there is no file under "{control}" yet; upload one, or record, or take the example clip')
        real = os.path.realpath(str(path))
        if not real.startswith(os.path.join(self.folder, "")) or not os.path.isfile(real):
            raise DataError(f'the file under "{control}" was not uploaded here, or is gone; upload it again')
        return Path(real)
