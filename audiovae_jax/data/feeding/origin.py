"""Where records come from: the file and the place in it, remembered for those that were made last."""

import collections
import dataclasses
import threading

_REMEMBERED = 1 << 14  # records: more than are read ahead


@dataclasses.dataclass(frozen=True)
class Origin:
    """What a record was cut from.

    Attributes:
      file: its name, as in all messages.
      start: seconds from its beginning; None where there is no such place.
      samples: of the record, from its beginning on, that are the file's; None where all are.
    """

    file: str
    start: float | None = None
    samples: int | None = None

    def __str__(self):
        return self.file if self.start is None else f"{self.file} at {self.start:.2f} s"


class Origins:
    """The origins of the last records, by number; threads may share it."""

    def __init__(self, most: int = _REMEMBERED):
        self._most, self._lock = most, threading.Lock()
        self._known: collections.OrderedDict[int, Origin] = collections.OrderedDict()

    def remember(self, index: int, origin: Origin):
        """Note where record `index` comes from, and forget the oldest if there are too many."""
        with self._lock:
            self._known[index] = origin
            self._known.move_to_end(index)
            if len(self._known) > self._most:
                self._known.popitem(last=False)

    def get(self, index: int) -> Origin | None:
        """Where record `index` comes from; None if that is forgotten, or it was never made."""
        with self._lock:
            return self._known.get(index)
