"""Progress of the processes of a run, and which of them hold up the others."""

import collections
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

# Phases without a time limit. A compilation and the search for audio files may take any time.
_UNLIMITED = ("starting", "compiling")


class Place(NamedTuple):
    """Where a process is.

    Attributes:
      steps: number of training steps begun. A rollback does not reset it.
      changes: number of changes of the phase since then.
      phase: for example "reading".
      step: the number of the training step.
      seconds: time since the last change.
    """

    steps: int
    changes: int
    phase: str
    step: int
    seconds: float


class Beat(NamedTuple):
    """A heartbeat of a process.

    Attributes:
      number: counts the heartbeats of the process.
      host: its host.
      place: where the process is.
      waiting: its fraction of time spent waiting for data.
    """

    number: int
    host: str
    place: Place
    waiting: float

    @classmethod
    def parse(cls, text: str) -> "Beat":
        """Return the heartbeat whose `json.dumps` is `text`."""
        number, host, place, waiting = json.loads(text)
        return cls(number, host, Place(*place), waiting)

    def __str__(self) -> str:
        return f"on {self.host}; phase {self.place.phase}, step {self.place.step}"


class Progress:
    """The progress of this process, and the time that its phases took.

    Only the main thread changes it.
    """

    def __init__(self):
        # The place, and the time of its change. They are set at once, since another thread reads them.
        self._at = (Place(0, 0, "starting", 0, 0.0), time.monotonic())
        self._spent = collections.defaultdict(float)  # seconds by phase, until that change

    def place(self) -> Place:
        """Return where this process is; callable from any thread."""
        place, since = self._at
        return place._replace(seconds=time.monotonic() - since)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each phase so far, without those of the phases inside it."""
        place = self.place()
        return {**self._spent, place.phase: self._spent[place.phase] + place.seconds}

    def move(self, seconds: float, source: str, target: str):
        """Attribute seconds of one phase to another."""
        self._spent[source] -= seconds
        self._spent[target] += seconds

    def step(self, step: int):
        """Begin a training step."""
        self._change(steps=self._at[0].steps + 1, changes=0, phase="step", step=step)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A context for a phase. The phase around it continues afterwards."""
        before = self._at[0].phase
        self._change(phase=name)
        try:
            yield
        finally:
            self._change(phase=before)

    def made(self, result: Any) -> Any:
        """Record progress within a phase, and return `result`."""
        self._change()
        return result

    def _change(self, **changes):
        (place, since), now = self._at, time.monotonic()
        self._spent[place.phase] += now - since
        self._at = (place._replace(**{"changes": place.changes + 1, **changes}), now)


def stuck(places: dict[int, Place], seconds: float) -> list[int]:
    """Return the processes that hold up the others without making progress.

    All processes go through the same phases. One that waits for another is ahead of it, so the ones that are furthest
    behind hold up the others.

    Args:
      places: where each process is, by its index.
      seconds: time without progress from which on a process is stuck.
    """
    last = min(place[:2] for place in places.values())
    behind = {index: place for index, place in places.items() if place[:2] == last}
    is_slow = all(place.phase not in _UNLIMITED and place.seconds > seconds for place in behind.values())
    return sorted(behind) if is_slow else []
