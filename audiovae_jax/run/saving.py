"""Saving checkpoints with retries: a failed save is reported and retried."""

import time
from collections.abc import Callable

import jax

from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.training.state import TrainState

_FIRST_PAUSE, _MAX_PAUSE = 30.0, 600.0  # seconds until a retry


class Saving:
    """Saves checkpoints, and retries after failures.

    The first retry is due after 30 s. The pause doubles with each further failure, up to ten minutes. A retry saves
    the state of the step at which it happens, and the next regular checkpoint counts as a retry. With several
    processes, whose clocks differ, the next regular checkpoint is the only retry.

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
