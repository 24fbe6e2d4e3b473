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
      record: called with `(step, metrics)` every 50 batches. `perf/data_wait_fraction` is the fraction of the time, and
        `perf/max_data_wait_fraction` that of the slowest of several processes.
      warn: called with a warning, at most once for each process.
      slowest: maps this process's fraction to the largest one of all processes and the name of that process. The name
        is empty with one process.

    Attributes:
      overlapped: seconds of all waits that do not count.
    """

    def __init__(
        self,
        batches: Iterator,
        num_threads: int,
        record: Callable[[int, dict], None],
        warn: Callable[[str], None],
        slowest: Callable[[float], tuple[float, str]] = lambda share: (share, ""),
    ):
        self._batches, self._num_threads, self._record, self._warn = batches, num_threads, record, warn
        self._slowest, self._reported = slowest, set()
        self.overlapped = 0.0
        self._restart()

    def next(self, step: int, is_idle: Callable[[], bool] = lambda: True) -> Any:
        """Return the next batch.

        Args:
          step: the step of the previous batch.
          is_idle: returns whether the accelerator is idle; called when the batch has arrived.
        """
        began = time.monotonic()
        batch = next(self._batches)
        waited = time.monotonic() - began
        if is_idle():
            self._waited += waited
        else:
            self.overlapped += waited
        self._count += 1
        if self._count == _WINDOW:
            share = self._waited / max(time.monotonic() - self._began, 1e-9)
            most, name = self._slowest(share)
            of_all = {"perf/max_data_wait_fraction": most} if name else {}
            self._record(step, {"perf/data_wait_fraction": share} | of_all)
            if most > _WARNING_FRACTION and name not in self._reported:
                self._reported.add(name)
                where = f" in {name}, the slowest" if name else ""
                self._warn(
                    f"warning: {most:.0%} of the time is spent waiting for data{where}; raise config.data.num_threads "
                    f"(now {self._num_threads}) and config.data.prefetch_batches, or convert the data to shards with "
                    "audiovae-jax make_shards"
                )
            self._restart()
        return batch

    def _restart(self):
        self._began, self._waited, self._count = time.monotonic(), 0.0, 0
