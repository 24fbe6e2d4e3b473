"""Checkpoints of a run that goes on when one cannot be written: said at once, tried again, fatal when it goes on."""

import time
from collections.abc import Callable

import jax

from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.training.state import TrainState

_FIRST_PAUSE, _LONGEST_PAUSE = 30.0, 600.0  # seconds until the next attempt


class Saving:
    """Saves checkpoints, and bears with failures.

    What fails is tried again with the state of the step that is then, after half a minute, a minute and so on up to
    ten minutes; with the next checkpoint at the latest. Several processes, whose clocks differ, wait for that one.

    Args:
      checkpoints: of the run.
      most_failures: in a row; with so many, the last is raised.
      say: takes a line.
    """

    def __init__(self, checkpoints: Checkpoints, most_failures: int, say: Callable[[str], None]):
        self._checkpoints, self._most_failures, self._say = checkpoints, most_failures, say
        self._failures, self._failed = 0, False
        self._again_at: float | None = None
        self._last: tuple | None = None

    def save(self, state: TrainState, **described):
        """Begin a checkpoint, see `Checkpoints.save`.

        Raises:
          CheckpointError: it was one failure too many.
        """
        self.settle()  # a failure of the one before is not this one's
        self._last, self._again_at, self._failed = (state, described), None, False
        self._attempt(lambda: self._checkpoints.save(state, **described))

    def check(self):
        """Say if what is being written has failed; CheckpointError if that was once too often."""
        self._attempt(self._checkpoints.check)

    def is_due_again(self) -> bool:
        """Whether a failed checkpoint is to be tried again now."""
        return self._again_at is not None and time.monotonic() >= self._again_at

    def finish(self, is_hurried: Callable[[], bool] = lambda: False):
        """Wait until the last checkpoint is written, and try again as long as it is not.

        Args:
          is_hurried: whether there is no time to try again.

        Raises:
          CheckpointError: it was one failure too many; with several processes, or in a hurry, any.
        """
        self.settle()
        while self._failed:
            while not (hurried := is_hurried()) and self._again_at is not None and time.monotonic() < self._again_at:
                time.sleep(min(1.0, max(0.0, self._again_at - time.monotonic())))
            if hurried or jax.process_count() > 1:
                raise CheckpointError("the last checkpoint was not written, for the reason above")
            state, described = self._last
            self.save(state, **described)
            self.settle()

    def settle(self):
        """Wait for what is being written; when that is there, failures are counted anew.

        Raises:
          CheckpointError: it was one failure too many.
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
                raise CheckpointError(f"{error}. With that mended, the same command goes on from there") from error
            pause = min(_FIRST_PAUSE * 2 ** (self._failures - 1), _LONGEST_PAUSE)
            again = "with the next checkpoint"
            if jax.process_count() == 1:
                self._again_at = time.monotonic() + pause
                again = f"in {pause:.0f} s"
            self._say(
                f"warning: {error} (failure {self._failures} of config.max_failed_saves={self._most_failures} in a "
                f"row; the run goes on, and tries again {again})"
            )
