"""`sessions.json` of a workdir: what each session ran, and where time went.

A session is one start of the run, until its end or its kill. Every second of it belongs to one part, so the parts add
up to its wall-clock time.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import audiovae_jax
from audiovae_jax.distributed.progress import Progress
from audiovae_jax.storage import bucket_path
from audiovae_jax.storage.bucket_path import BucketPath

NAME = "sessions.json"
# The part that each phase of `Progress` belongs to. All others belong to "other".
_PART_OF = {
    "step": "steps",
    "compiling": "compiling",
    "validating": "validation",
    "sampling": "validation",
    "saving": "saving",
    "restoring": "restoring",
    "reading": "input",
}
MEASURED = (*dict.fromkeys(_PART_OF.values()), "other")
# Over all sessions, a part is added for the steps that a later session or a rollback repeated.
PARTS = (*MEASURED, "lost")
_PAUSE, _PAUSE_IN_BUCKET = 10.0, 60.0  # seconds between updates of the file
_PATIENCE = 10.0  # seconds that training waits for a bucket
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
_GIT_TIMEOUT = 10.0  # seconds for one git command


class SessionClock:
    """Records the parts of a session, and its steps.

    Nothing is written before `open`.

    Args:
      progress: of this process. The session starts with it.
    """

    def __init__(self, progress: Progress):
        self._progress = progress
        self._started = time.time() - sum(progress.seconds().values())
        self._path: Path | BucketPath | None = None
        self._earlier: list[dict] = []
        self._origin: dict[str, Any] = {}
        self._first = 0

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
        self._first, self._origin = step, origin()
        with contextlib.suppress(OSError):  # if earlier sessions cannot be read, do not overwrite them
            self._earlier = read(workdir)
            self._path, self._is_ours = workdir / NAME, is_ours
            self.write()

    def update(self):
        """Update the file if it is ten seconds old."""
        if self._path is not None and time.monotonic() - self._written > self._pause:
            self.write()

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
        place, seconds = self._progress.place(), dict.fromkeys(MEASURED, 0.0)
        for phase, spent in self._progress.seconds().items():
            seconds[_PART_OF.get(phase, "other")] += spent
        last = place.step if place.steps else self._first
        session = {
            "started": self._started,
            "first_step": self._first,
            "last_step": last,
            "steps": place.steps,
            "repeated_steps": place.steps - (last - self._first),  # by rollbacks
            "seconds": seconds,
            **self._origin,
        }
        return [*self._earlier, session]


def origin() -> dict[str, Any]:
    """Return what this process runs, as JSON values.

    Returns:
      `command`: the command line. `versions`: of Python and the packages; None for a package that is not installed.
      `git`: for `package` and `working_directory`, if git finds them in a repository: the `commit`, and whether tracked
      files are changed (`dirty`). The package counts only if its files are tracked, unlike in an environment's folder.
    """
    versions: dict[str, str | None] = {"python": platform.python_version(), "audiovae_jax": audiovae_jax.__version__}
    for name in _PACKAGES:
        versions[name] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    git = {}
    package = Path(__file__).parent
    if _git(package, "ls-files", "--error-unmatch", Path(__file__).name) is not None:
        git["package"] = _git_state(package)
    git["working_directory"] = _git_state(Path())
    git = {name: state for name, state in git.items() if state is not None}
    return {"command": shlex.join(sys.orig_argv), "versions": versions, "git": git}


def _git_state(folder):
    """Return `{"commit", "dirty"}` of a folder's repository, or None."""
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return None if commit is None or changed is None else {"commit": commit, "dirty": bool(changed)}


def _git(folder, *arguments):
    """Return the output of a git command, or None if git is missing or fails."""
    environment = {**os.environ, "GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
            errors="replace", timeout=_GIT_TIMEOUT, check=False,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


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
    """Return how many steps of each session were repeated.

    The session itself repeats steps after a rollback. A later session repeats those after its first step.
    """
    repeated, resumed = [], None  # the earliest step from which a later session resumed
    for session in reversed(sessions):
        last, first = session["last_step"], session["first_step"]
        lost = 0 if resumed is None else max(0, last - max(first, resumed))
        repeated.append(lost + session["repeated_steps"])
        resumed = first if resumed is None else min(first, resumed)
    return repeated[::-1]


def each(sessions: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Return the seconds of every session by part.

    Together they are its wall-clock time. The steps of a session are assumed to take equally long.
    """
    found = []
    for session, repeated in zip(sessions, repeated_steps(sessions), strict=True):
        seconds = {part: float(session["seconds"][part]) for part in MEASURED}
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
