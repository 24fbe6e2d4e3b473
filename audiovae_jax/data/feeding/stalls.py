"""How much of the time the accelerator stands still for want of data."""

import time
from collections.abc import Callable, Iterator
from typing import Any

_WINDOW = 50  # batches that a figure is of
_WORTH_A_WARNING = 0.05


class Waiting:
    """Takes batches from an iterator, and keeps account of the waiting for them.

    The next batch is fetched while a step runs. Its wait counts where the step has ended before it came: an
    upper bound of the time in which the accelerator had nothing to do.

    Args:
      batches: an iterator.
      num_threads: that make them, for the warning.
      record: takes `(step, {"perf/data_wait_fraction": share of the time})` now and then.
      say: takes a warning, once.
    """

    def __init__(
        self, batches: Iterator, num_threads: int, record: Callable[[int, dict], None], say: Callable[[str], None]
    ):
        self._batches, self._num_threads, self._record, self._say = batches, num_threads, record, say
        self._warned = False
        self._restart()

    def next(self, step: int, is_idle: Callable[[], bool] = lambda: True) -> Any:
        """The next batch.

        Args:
          step: that the batch before it is for.
          is_idle: whether the accelerator has nothing to do; asked when the batch is there.
        """
        began = time.monotonic()
        batch = next(self._batches)
        if is_idle():
            self._waited += time.monotonic() - began
        self._count += 1
        if self._count == _WINDOW:
            share = self._waited / max(time.monotonic() - self._began, 1e-9)
            self._record(step, {"perf/data_wait_fraction": share})
            if share > _WORTH_A_WARNING and not self._warned:
                self._warned = True
                self._say(
                    f"warning: {share:.0%} of the time goes by waiting for data; raise config.data.num_threads (now "
                    f"{self._num_threads}) and prefetch_batches with it, or make shards of it (scripts/make_shards.py)"
                )
            self._restart()
        return batch

    def _restart(self):
        self._began, self._waited, self._count = time.monotonic(), 0.0, 0
