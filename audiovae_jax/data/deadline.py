"""Reads that may never return: a dead network mount blocks for ever, and no signal ends it."""

import queue
import threading
from collections.abc import Callable
from typing import TypeVar

from audiovae_jax.errors import DataError

_Result = TypeVar("_Result")


class TimedOutError(DataError):
    """A read did not return in time."""


def within(seconds: float, function: Callable[..., _Result], *args) -> _Result:
    """What `function(*args)` returns or raises, if it ends in time.

    It runs in a thread of the calling thread's own, which stays for the next call. A call that does not end
    keeps that thread for good; the program ends without it.

    Args:
      seconds: 0 waits for ever, in the calling thread.
      function, args: the call.

    Raises:
      TimedOutError: it did not end in time.
    """
    if not seconds:
        return function(*args)
    helper = getattr(_local, "helper", None) or _Helper()
    _local.helper = None  # gone, unless it comes back
    answer = helper.ask(function, args)
    try:
        result, error = answer.get(timeout=seconds)
    except queue.Empty:
        raise TimedOutError(f"reading did not return within data.read_timeout={seconds:g} s") from None
    _local.helper = helper
    if error is not None:
        raise error
    return result


_local = threading.local()


class _Helper:
    def __init__(self):
        self._calls = queue.SimpleQueue()
        threading.Thread(target=self._serve, args=(self._calls,), name="audio-reader", daemon=True).start()

    def __del__(self):
        self._calls.put(None)

    def ask(self, function, args):
        answer = queue.SimpleQueue()
        self._calls.put((function, args, answer))
        return answer

    @staticmethod
    def _serve(calls):
        while (call := calls.get()) is not None:
            function, args, answer = call
            try:
                answer.put((function(*args), None))
            except Exception as error:
                answer.put((None, error))
            del call, function, args, answer  # nothing is held while waiting
