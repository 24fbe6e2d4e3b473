"""Calls in a thread of their own, which a run that stops does not wait for."""

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

# XLA recurses deeply. By default a thread has 2 MB with glibc where `ulimit -s` is unlimited.
_STACK = 64 << 20  # bytes


class Background(threading.Thread):
    """Runs `call` at once, for instance one that compiles: nothing can interrupt it.

    Python waits for the thread before it ends; see `leave`.
    """

    def __init__(self, call: Callable[[], Any]):
        super().__init__(name="background call")
        self._call, self._value, self._error = call, None, None
        before = threading.stack_size(_STACK)
        try:
            self.start()
        finally:
            threading.stack_size(before)

    def run(self):
        """Make the call; `start` has done so already."""
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        finally:
            self._call = None

    def result(self) -> Any:
        """Wait, and return what the call returned or raise what it raised."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._value


def leave(status: int, message: str = ""):
    """End the process at once if a call is running; for commands, when all else is done.

    Args:
      status: of the process.
      message: what to print first, to the standard error.
    """
    if any(isinstance(thread, Background) for thread in threading.enumerate()):
        print(message, end="\n" if message else "", file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(status)
