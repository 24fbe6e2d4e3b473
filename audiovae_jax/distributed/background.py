"""Calls in background threads, which a run need not wait for when it stops."""

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax

# XLA recurses deeply. With glibc and an unlimited `ulimit -s`, a thread has only 2 MB of stack by default.
_STACK = 64 << 20  # bytes
_GRACE = 5.0  # seconds for other threads to end by themselves
_starting = threading.Lock()  # held while the size of new threads' stacks, which all threads share, is changed


class Background(threading.Thread):
    """A thread that runs `call` immediately, for example a compilation.

    The call cannot be interrupted. Python waits for the thread before it exits; see `leave`.
    """

    def __init__(self, call: Callable[[], Any]):
        super().__init__(name="background call")
        self._call, self._value, self._error = call, None, None
        with _starting:
            before = threading.stack_size(_STACK)
            try:
                self.start()
            finally:
                threading.stack_size(before)

    def run(self):
        """Run the call. The constructor has already started the thread."""
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error
        finally:
            self._call = None

    def result(self) -> Any:
        """Wait for the call, and return its result or raise its error."""
        self.join()
        if self._error is not None:
            raise self._error
        return self._value


def leave(status: int, before: Callable[[], None] = lambda: None):
    """End the process without waiting for a background call or a hanging thread.

    Python would wait for them, for example for a thread that reads a file of a dead network mount. Commands call this
    last.

    Args:
      status: exit status of the process.
      before: called before the process ends, for example to print the reason.
    """
    if any(isinstance(thread, Background) for thread in threading.enumerate()) or _is_held_up():
        before()
        sys.stdout.flush()
        sys.stderr.flush()
        if status == 0 and jax.distributed.is_initialized():
            # Or the other processes abort: without process 0 they have no coordinator.
            with contextlib.suppress(RuntimeError):
                jax.distributed.shutdown()
        os._exit(status)


def _is_held_up():
    deadline = time.monotonic() + _GRACE
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not threading.main_thread()]
    for thread in others:
        thread.join(max(0.0, deadline - time.monotonic()))
    return any(thread.is_alive() for thread in others)
