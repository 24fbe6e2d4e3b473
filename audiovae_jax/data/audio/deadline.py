"""Reads that may never return: a dead network mount blocks for ever, and no signal ends it."""

import queue
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from audiovae_jax.errors import DataError

_Result = TypeVar("_Result")


class TimedOutError(DataError):
    """A read did not return in time; `what` is the name that was last given to `begin`, or None."""

    def __init__(self, message: str, what: str | None):
        super().__init__(message)
        self.what = what


def within(seconds: float, function: Callable[..., _Result], *args) -> _Result:
    """What `function(*args)` returns or raises, if it ends in time, or each read that it begins does.

    It runs in a thread of the calling thread's own, which stays for the next call. A call that does not end
    keeps that thread for good; the program ends without it.

    Args:
      seconds: for the call, counted anew from each `begin` in it; 0 waits for ever, in the calling thread.
      function, args: the call.

    Raises:
      TimedOutError: it did not end in time.
    """
    if not seconds:
        return function(*args)
    helper = getattr(_local, "helper", None) or _Helper()
    _local.helper = None  # gone, unless it comes back
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
    """Of many reads in one call: the next begins, of `what`, and has the whole time again."""
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
            del call, function, args, answer, _local.serving  # nothing is held while waiting
