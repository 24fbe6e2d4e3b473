"""What went wrong with a run's audio: counted, said once, listed in a file, and fatal past a share."""

import contextlib
import json
import sys
import threading
from collections.abc import Collection
from pathlib import Path

from audiovae_jax.errors import DataError
from audiovae_jax.storage.bucket_path import BucketPath


class Health:
    """Keeps account of files that cannot be used.

    Args:
      total: how many files there are, usable or not.
      skipped: `(name, reason)` of those that were found unusable at the start.
      max_share: of `total`; more unusable ones end the run.
      names: of all files, where an earlier run's list is to be gone on with.
    """

    def __init__(self, total: int, skipped=(), max_share: float = 1.0, names: Collection[str] = ()):
        self._total, self._max_share, self._names = total, max_share, names
        self._hanging: set[str] = set()
        self._path = None
        self._bad: dict[str, str] = dict(skipped)
        self._replaced = 0
        self._lock = threading.Lock()

    def list_in(self, path: Path | BucketPath):
        """List what cannot be used, now and from here on: JSON Lines of a name and a reason each.

        What such a list has already, of files that are still there, counts too.

        Raises:
          DataError: it is too much already, or the list cannot be written.
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
    def total(self) -> int:
        """How many files there are, usable or not."""
        return self._total

    @property
    def bad_files(self) -> int:
        """How many files cannot be used, as far as is known."""
        return len(self._bad)

    @property
    def replaced_crops(self) -> int:
        """How many crops were drawn anew since theirs could not be read."""
        return self._replaced

    def is_bad(self, name: str) -> bool:
        """Whether a file is known not to be usable."""
        return name in self._bad

    def is_hanging(self, name: str) -> bool:
        """Whether a file is known not to answer."""
        return name in self._hanging

    def count_replaced(self):
        """Count a crop that is drawn anew without its file being tried."""
        with self._lock:
            self._replaced += 1

    def replaced(self, name: str, reason: str, is_hanging: bool = False):
        """Count a crop that is drawn anew, since its file has turned out bad, or has not answered.

        Raises:
          DataError: too many have.
        """
        with self._lock:
            self._replaced += 1
            if is_hanging:
                self._hanging.add(name)
            if name in self._bad:
                return
            self._bad[name] = reason
            print(f"warning: another crop is taken in place of {reason}", file=sys.stderr)
            if self._path is not None:
                with contextlib.suppress(OSError):  # the warning above has said it
                    self._add(name, reason)
        self.require_few()

    def _add(self, name, reason):
        if isinstance(self._path, BucketPath):  # where nothing can be appended to
            self._path.write_text(self._lines())
            return
        with open(self._path, "a") as file:
            file.write(_line(name, reason))

    def _lines(self):
        return "".join(_line(name, reason) for name, reason in self._bad.items())

    def require_few(self):
        """Raise DataError, with the last reasons, if more files than `max_share` cannot be used."""
        if len(self._bad) > self._max_share * self._total:
            reasons = "\n".join(f"  {name}: {reason}" for name, reason in list(self._bad.items())[-5:])
            raise DataError(
                f"{len(self._bad)} of {self._total} files cannot be used, more than "
                f"data.max_bad_share={self._max_share:g} allows; the last:\n{reasons}"
            )


def _listed(path):
    """`(name, reason)` of an earlier run's list, as far as it can be read."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        try:
            entry = json.loads(line)
            yield str(entry["file"]), str(entry["reason"])
        except (ValueError, KeyError, TypeError):  # half a line, of a run that was killed
            continue


def _line(name, reason):
    return json.dumps({"file": name, "reason": reason}) + "\n"
