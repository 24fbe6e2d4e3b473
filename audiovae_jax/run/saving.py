"""Saving checkpoints: when they are due by time, and retries after failures."""

import itertools
import time
from collections.abc import Callable

import jax

from audiovae_jax.distributed.group import Group
from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.training.state import TrainState

_FIRST_PAUSE, _MAX_PAUSE = 30.0, 600.0  # seconds until a retry


class Saving:
    """Saves checkpoints, and retries after failures.

    The first retry is due after 30 s. The pause doubles with each further failure, up to ten minutes. A retry saves
    the state of the step at which it happens, and the next checkpoint counts as a retry. With several processes, whose
    clocks differ, the next checkpoint is the only retry.

    Args:
      checkpoints: the run's checkpoints.
      most_failures: number of failures in a row after which the last one is raised.
      say: called with each line to report.
    """

    def __init__(self, checkpoints: Checkpoints, most_failures: int, say: Callable[[str], None]):
        self._checkpoints, self._most_failures, self._say = checkpoints, most_failures, say
        self._failures, self._failed = 0, False
        self._again_at: float | None = None
        self._last: tuple | None = None

    def save(self, state: TrainState, **described):
        """Start saving a checkpoint, see `Checkpoints.save`.

        Raises:
          CheckpointError: `most_failures` saves in a row have failed.
        """
        self.settle()  # a failure of the previous save must not be attributed to this one
        self._last, self._again_at, self._failed = (state, described), None, False
        self._attempt(lambda: self._checkpoints.save(state, **described))

    def check(self):
        """Warn if the save in progress has failed.

        Raises:
          CheckpointError: `most_failures` saves in a row have failed.
        """
        self._attempt(self._checkpoints.check)

    def is_due_again(self) -> bool:
        """Whether a retry of a failed checkpoint is due."""
        return self._again_at is not None and time.monotonic() >= self._again_at

    @property
    def owes_validated(self) -> bool:
        """Whether a failed checkpoint that had validation metrics awaits its retry."""
        return self._again_at is not None and bool(self._last[1].get("metrics"))

    def finish(self, is_hurried: Callable[[], bool] = lambda: False):
        """Wait until the last checkpoint is written, retrying if it fails.

        Args:
          is_hurried: returns whether there is no time for retries.

        Raises:
          CheckpointError: `most_failures` saves in a row have failed. With several processes, or without time for
            retries, the first failure raises.
        """
        self.settle()
        while self._failed:
            while not (hurried := is_hurried()) and self._again_at is not None and time.monotonic() < self._again_at:
                time.sleep(min(1.0, max(0.0, self._again_at - time.monotonic())))
            if hurried or jax.process_count() > 1:
                raise CheckpointError("the last checkpoint was not written; the reason is above")
            state, described = self._last
            self.save(state, **described)
            self.settle()

    def settle(self):
        """Wait for the save in progress, and reset the count of failures if it succeeds.

        Raises:
          CheckpointError: `most_failures` saves in a row have failed.
        """
        self._attempt(self._checkpoints.wait)
        if not self._failed:
            self._failures = 0

    def _attempt(self, action):
        try:
            action()
        except CheckpointError as error:
            self._failures, self._failed = self._failures + 1, True
            if self._failures >= self._most_failures:
                raise CheckpointError(f"{error}. Fix this, and run the same command to resume") from error
            pause = min(_FIRST_PAUSE * 2 ** (self._failures - 1), _MAX_PAUSE)
            again = "with the next checkpoint"
            if jax.process_count() == 1:
                self._again_at = time.monotonic() + pause
                again = f"in {pause:.0f} s"
            self._say(
                f"warning: {error} (failure {self._failures} of config.max_failed_saves={self._most_failures} in a "
                f"row; training continues; next attempt {again})"
            )


class SaveTimer:
    """Decides at which steps a checkpoint is due by time, in all processes alike.

    Process 0 decides by its clock. Each decision also sets the step of the next one, at about half of the remaining
    time. At the steps in between, no process needs the others.

    Args:
      minutes: time from one checkpoint to the next; 0 for no checkpoints by time.
      group: the run's processes.
    """

    def __init__(self, minutes: float, group: Group):
        self._interval, self._group = 60 * minutes, group
        self._decisions = itertools.count()
        self.restart()

    def restart(self):
        """Forget the time so far: training starts, or resumes from a checkpoint."""
        self._next, self._measured = 0, None

    def saved(self):
        """Start the time again: a checkpoint is being saved."""
        self._since = time.monotonic()

    def is_due(self, step: int) -> bool:
        """Return whether to save a checkpoint of `step` steps.

        All processes call this after every step.
        """
        if not self._interval or step < self._next:
            return False
        name = f"save/{next(self._decisions)}"
        due, self._next = self._group.of_first(name, self._decide(step))
        return due

    def _decide(self, step):
        """Return whether a checkpoint is due, and the step of the next decision."""
        now = time.monotonic()
        before, self._measured = self._measured, (step, now)
        if before is None:
            self._since = now
            return False, step + 1
        seconds_per_step = max((now - before[1]) / (step - before[0]), 1e-9)
        remaining = self._since + self._interval - now
        if remaining < seconds_per_step / 2:
            return True, step + 1
        # A few steps may have been faster than the next ones, so the number of steps at most doubles.
        return False, step + max(1, min(int(remaining / 2 / seconds_per_step), 2 * (step - before[0])))
