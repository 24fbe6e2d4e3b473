"""The origins of recent records: their files and positions."""

import collections
import dataclasses
import threading

_REMEMBERED = 1 << 14  # records; more than are prefetched


@dataclasses.dataclass(frozen=True)
class Origin:
    """The file and position that a record was cut from.

    Attributes:
      file: its name, as in all messages.
      start: position in seconds; None if there is none.
      samples: number of the record's first samples that come from the file; None for all.
    """

    file: str
    start: float | None = None
    samples: int | None = None

    def __str__(self):
        return self.file if self.start is None else f"{self.file} at {self.start:.2f} s"


class Origins:
    """The origins of the most recent records, by number; thread-safe."""

    def __init__(self, most: int = _REMEMBERED):
        self._most, self._lock = most, threading.Lock()
        self._known: collections.OrderedDict[int, Origin] = collections.OrderedDict()

    def remember(self, index: int, origin: Origin):
        """Store the origin of record `index`, and drop the oldest if there are too many."""
        with self._lock:
            self._known[index] = origin
            self._known.move_to_end(index)
            if len(self._known) > self._most:
                self._known.popitem(last=False)

    def get(self, index: int) -> Origin | None:
        """Return the origin of record `index`, or None if it is not stored."""
        with self._lock:
            return self._known.get(index)
