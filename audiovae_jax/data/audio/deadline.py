"""Time limits for reads that may never return.

A read from a dead network mount blocks forever, and no signal interrupts it.
"""

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from audiovae_jax.errors import DataError

_Result = TypeVar("_Result")


class TimedOutError(DataError):
    """A read timed out; `what` is the name last passed to `begin`, or None."""

    def __init__(self, message: str, what: str | None):
        super().__init__(message)
        self.what = what


def within(seconds: float, function: Callable[..., _Result], *args) -> _Result:
    """Call `function(*args)` with a time limit.

    The call runs in a helper thread, which the calling thread reuses for its next call. A call that never returns
    keeps its helper. As a daemon thread, it does not delay the end of the program.

    Args:
      seconds: time limit, restarted by each `begin` in the call. 0 means no limit, and runs in the calling thread.
      function, args: the call.

    Returns:
      The function's result. Its exceptions are raised here.

    Raises:
      TimedOutError: the call did not return in time.
    """
    if not seconds:
        return function(*args)
    helper = getattr(_local, "helper", None) or _Helper()
    _local.helper = None  # lost if the call times out
    answer = helper.ask(function, args)
    while True:
        what, began = helper.reading
        try:
            result, error = answer.get(timeout=max(0.0, began + seconds - time.monotonic()))
            break
        except queue.Empty:
            if helper.reading == (what, began):
                raise TimedOutError(f"reading did not return within data.read_timeout={seconds:g} s", what) from None
    _local.helper = helper
    if error is not None:
        raise error
    return result


def begin(what: str):
    """Restart the time limit of the current `within` call for a read of `what`."""
    if (helper := getattr(_local, "serving", None)) is not None:
        helper.reading = what, time.monotonic()


_local = threading.local()


class _Helper:
    def __init__(self):
        self._calls = queue.SimpleQueue()
        self.reading: tuple[str | None, float] = None, 0.0
        threading.Thread(target=self._serve, args=(self._calls,), name="audio-reader", daemon=True).start()

    def __del__(self):
        self._calls.put(None)

    def ask(self, function, args):
        answer = queue.SimpleQueue()
        self.reading = None, time.monotonic()
        self._calls.put((self, function, args, answer))
        return answer

    @staticmethod
    def _serve(calls):
        while (call := calls.get()) is not None:
            _local.serving, function, args, answer = call
            try:
                answer.put((function(*args), None))
            except Exception as error:
                answer.put((None, error))
            del call, function, args, answer, _local.serving  # keep nothing alive while waiting
