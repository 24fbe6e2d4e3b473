"""`sessions.json` of a workdir: where the time of a run went, by session.

A session is one start of the run, until its end or its kill. Every second of it belongs to one phase, so the phases add
up to its wall-clock time.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from audiovae_jax.storage import bucket_path
from audiovae_jax.storage.bucket_path import BucketPath

NAME = "sessions.json"
PHASES = ("steps", "compiling", "validation", "saving", "restoring", "input", "other")
# Of all sessions: the phases, and the steps that a later session or a rollback repeated.
PARTS = (*PHASES, "lost")
_PAUSE, _PAUSE_IN_BUCKET = 10.0, 60.0  # seconds between updates of the file
_PATIENCE = 10.0  # seconds that training waits for a bucket


class SessionClock:
    """Measures the phases of a session, from its construction on.

    Nothing is written before `open`.
    """

    def __init__(self):
        self._started, self._changed = time.time(), time.monotonic()
        self._phase = "other"
        self._seconds = dict.fromkeys(PHASES, 0.0)
        self._path: Path | BucketPath | None = None
        self._written = self._changed
        self._earlier: list[dict] = []
        self._first = self._step = self._steps = self._repeated = 0

    def open(self, workdir: Path | BucketPath, step: int, is_ours: Callable[[], bool]):
        """Record the session in a workdir, in addition to the earlier ones.

        Args:
          workdir: of the run.
          step: the number of steps done before this session.
          is_ours: returns whether the file may still be written.
        """
        self._pause = _PAUSE
        if isinstance(workdir, BucketPath):
            workdir, self._pause = workdir.patient(_PATIENCE), _PAUSE_IN_BUCKET
        self._first = self._step = step
        with contextlib.suppress(OSError):  # rather no record of this session than none of the earlier ones
            self._earlier = read(workdir)
            self._path, self._is_ours = workdir / NAME, is_ours
            self.write()

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A context whose time belongs to a phase, except for the phases inside it."""
        outer = self._enter(name)
        try:
            yield
        finally:
            self._enter(outer)

    def move(self, name: str, seconds: float):
        """Attribute seconds of the current phase to another one."""
        self._seconds[self._phase] -= seconds
        self._seconds[name] += seconds

    def step(self, step: int):
        """Note that `step` steps are done, and update the file every ten seconds."""
        self._steps += step - self._step
        self._step = step
        if self._path is not None and time.monotonic() - self._written > self._pause:
            self.write()

    def rewind(self, step: int):
        """Note a rollback to an earlier step."""
        self._repeated += self._step - step
        self._step = step

    def write(self):
        """Update the file."""
        if self._path is None or not self._is_ours():
            return
        self._written = time.monotonic()
        with contextlib.suppress(OSError):  # the writer of metrics.jsonl reports a full disk
            bucket_path.write_json(self._path, {"sessions": self.sessions()})

    def metrics(self) -> dict[str, float]:
        """Return the seconds of all sessions and their goodput, by event name."""
        seconds = totals(self.sessions())
        return {"perf/goodput": goodput(seconds)} | {f"time/{part}": value for part, value in seconds.items()}

    def sessions(self) -> list[dict[str, Any]]:
        """Return the sessions of the workdir, oldest first; this is the last."""
        self._enter(self._phase)
        session = {
            "started": self._started,
            "first_step": self._first,
            "last_step": self._step,
            "steps": self._steps,
            "repeated_steps": self._repeated,
            "seconds": dict(self._seconds),
        }
        return [*self._earlier, session]

    def _enter(self, name):
        now, outer = time.monotonic(), self._phase
        self._seconds[outer] += now - self._changed
        self._phase, self._changed = name, now
        return outer


def read(workdir: Path | BucketPath) -> list[dict[str, Any]]:
    """Read the sessions of a workdir, oldest first; empty if there is no intact file.

    Raises:
      OSError: the file cannot be read.
    """
    try:
        sessions = json.loads((workdir / NAME).read_text())["sessions"]
        totals(sessions)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []
    return sessions


def repeated_steps(sessions: list[dict[str, Any]]) -> list[int]:
    """Return the number of steps of each session that were repeated, by itself or by a later session."""
    repeated, resumed = [], None  # the earliest step from which a later session resumed
    for session in reversed(sessions):
        last, first = session["last_step"], session["first_step"]
        lost = 0 if resumed is None else max(0, last - max(first, resumed))
        repeated.append(lost + session["repeated_steps"])
        resumed = first if resumed is None else min(first, resumed)
    return repeated[::-1]


def each(sessions: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the seconds of every session by part; together they are its wall-clock time.

    The steps of a session are assumed to take equally long.
    """
    found = []
    for session, repeated in zip(sessions, repeated_steps(sessions), strict=True):
        seconds = {phase: float(session["seconds"][phase]) for phase in PHASES}
        lost = seconds["steps"] * repeated / max(1, session["steps"])
        found.append(seconds | {"steps": seconds["steps"] - lost, "lost": lost})
    return found


def totals(sessions: list[dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of all sessions by part."""
    return {part: sum(seconds[part] for seconds in each(sessions)) for part in PARTS}


def between(sessions: list[dict[str, Any]]) -> float:
    """Return the seconds between the sessions, in which the run was down."""
    ends = [session["started"] + sum(session["seconds"].values()) for session in sessions]
    return sum(max(0.0, after["started"] - end) for after, end in zip(sessions[1:], ends, strict=False))


def goodput(seconds: dict[str, float]) -> float:
    """Return the share of the time that went into steps which were not repeated."""
    return seconds["steps"] / max(sum(seconds.values()), 1e-9)


def summary(sessions: list[dict[str, Any]]) -> str:
    """Return one line on where the time went."""
    seconds = totals(sessions)
    count, repeated = len(sessions), sum(repeated_steps(sessions))
    names = {"input": "waiting for input", "lost": f"lost ({repeated} repeated steps)"}
    parts = [f"{names.get(part, part)} {duration(spent)}" for part, spent in seconds.items() if spent >= 0.05]
    where = f" in {count} sessions, {duration(between(sessions))} between them" if count > 1 else ""
    return f"goodput {goodput(seconds):.0%}: {duration(sum(seconds.values()))}{where}: {', '.join(parts)}"


def duration(seconds: float) -> str:
    """Format a duration: `12.3 s`, `45.6 min` or `7.89 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.2f} h"
