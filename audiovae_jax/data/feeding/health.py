"""Bad files of a run: counting and listing them, failing if they are too many."""

import contextlib
import json
import threading
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

from audiovae_jax.errors import DataError
from audiovae_jax.storage.bucket_path import BucketPath


class Health:
    """Tracks the files that cannot be used.

    Args:
      total: number of files, usable or not.
      skipped: `(name, reason)` of the files that were unusable at the start.
      max_share: fraction of `total`. The run fails if more files are unusable.
      names: of all files. Entries of an earlier list are kept if their files are among these.
      warn: called with a text when a file is found to be bad, once per file, in the thread that reads it.

    Attributes:
      total: number of files, usable or not.
      replaced_crops: number of crops that replaced unreadable ones.
    """

    def __init__(
        self,
        total: int,
        skipped: Collection[tuple[str, str]] = (),
        max_share: float = 1.0,
        names: Collection[str] = (),
        warn: Callable[[str], None] = warnings.warn,
    ):
        self.total, self._max_share, self._names, self._warn = total, max_share, names, warn
        self._hanging: set[str] = set()
        self._path = None
        self._bad: dict[str, str] = dict(skipped)
        self.replaced_crops = 0
        self._lock = threading.Lock()

    def list_in(self, path: Path | BucketPath):
        """Start a list of bad files at `path`.

        Its lines are JSON with a file's name and a reason. The files known so far are written now, later ones when they
        are found. Entries of an existing list count too if their files still exist.

        Raises:
          DataError: there are too many bad files already, or the list cannot be written.
        """
        self._path = path
        for name, reason in _listed(path):
            if name in self._names:
                self._bad.setdefault(name, reason)
        try:
            if self._bad or path.exists():
                path.write_text(self._lines())
        except OSError as error:
            raise DataError(f"{path} was not written: {error.strerror or error}") from error
        self.require_few()

    @property
    def bad_files(self) -> int:
        """Number of files known to be bad."""
        return len(self._bad)

    def is_bad(self, name: str) -> bool:
        """Return whether a file is known to be bad."""
        return name in self._bad

    def is_hanging(self, name: str) -> bool:
        """Return whether a read of this file has timed out."""
        return name in self._hanging

    def count_replaced(self):
        """Count a crop that is replaced without trying its file."""
        with self._lock:
            self.replaced_crops += 1

    def replaced(self, name: str, reason: str, is_hanging: bool = False):
        """Count a crop that is replaced because its file is bad or its read timed out.

        Raises:
          DataError: too many files are bad.
        """
        with self._lock:
            self.replaced_crops += 1
            if is_hanging:
                self._hanging.add(name)
            if name in self._bad:
                return
            self._bad[name] = reason
            if self._path is not None:
                with contextlib.suppress(OSError):  # the warning below names the file too
                    self._add(name, reason)
        self._warn(f"another crop is used instead of {reason}")
        self.require_few()

    def _add(self, name, reason):
        if isinstance(self._path, BucketPath):  # objects cannot be appended to
            self._path.write_text(self._lines())
            return
        with open(self._path, "a") as file:
            file.write(_line(name, reason))

    def _lines(self):
        return "".join(_line(name, reason) for name, reason in self._bad.items())

    def require_few(self):
        """Raise DataError, with the last reasons, if too many files are bad."""
        if len(self._bad) > self._max_share * self.total:
            reasons = "\n".join(f"  {name}: {reason}" for name, reason in list(self._bad.items())[-5:])
            raise DataError(
                f"{len(self._bad)} of {self.total} files cannot be used, more than "
                f"data.max_bad_share={self._max_share:g} allows; the last:\n{reasons}"
            )


def _listed(path):
    """Iterate over the readable `(name, reason)` entries of an earlier run's list."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            entry = json.loads(line)
            yield str(entry["file"]), str(entry["reason"])
        except (ValueError, KeyError, TypeError):  # an incomplete line of a killed run
            continue


def _line(name, reason):
    return json.dumps({"file": name, "reason": reason}) + "\n"
