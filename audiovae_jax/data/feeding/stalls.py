"""Stalls: the time that the accelerator waits for data."""

import time
from collections.abc import Callable, Iterator
from typing import Any

_WINDOW = 50  # batches per measurement
_WARNING_FRACTION = 0.05


class StallMeter:
    """Takes batches from an iterator, and measures the stalls.

    The next batch is fetched while a step runs. The wait counts only if the step has finished when the batch arrives.
    So the measured time is an upper bound of the accelerator's idle time.

    Args:
      batches: an iterator.
      num_threads: number of threads that make batches, for the warning.
      record: called with `(step, {"perf/data_wait_fraction": fraction of the time})` every 50 batches.
      warn: called with a warning, at most once.

    Attributes:
      seconds: of all stalls so far.
    """

    def __init__(
        self, batches: Iterator, num_threads: int, record: Callable[[int, dict], None], warn: Callable[[str], None]
    ):
        self._batches, self._num_threads, self._record, self._warn = batches, num_threads, record, warn
        self._is_reported = False
        self.seconds = 0.0
        self._restart()

    def next(self, step: int, is_idle: Callable[[], bool] = lambda: True) -> Any:
        """Return the next batch.

        Args:
          step: the step of the previous batch.
          is_idle: returns whether the accelerator is idle; called when the batch has arrived.
        """
        began = time.monotonic()
        batch = next(self._batches)
        if is_idle():
            waited = time.monotonic() - began
            self._waited += waited
            self.seconds += waited
        self._count += 1
        if self._count == _WINDOW:
            share = self._waited / max(time.monotonic() - self._began, 1e-9)
            self._record(step, {"perf/data_wait_fraction": share})
            if share > _WARNING_FRACTION and not self._is_reported:
                self._is_reported = True
                self._warn(
                    f"warning: {share:.0%} of the time is spent waiting for data; raise config.data.num_threads (now "
                    f"{self._num_threads}) and config.data.prefetch_batches, or convert the data to shards with "
                    "audiovae-jax make_shards"
                )
            self._restart()
        return batch

    def _restart(self):
        self._began, self._waited, self._count = time.monotonic(), 0.0, 0
