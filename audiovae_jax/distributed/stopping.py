"""Graceful stops: on SIGTERM, on Ctrl-C, and after a time limit."""

import contextlib
import os
import re
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator

from audiovae_jax.errors import ConfigError

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
_INTERRUPTED = 130  # exit status of a command ended by Ctrl-C, as in a shell


def seconds(text: str) -> int:
    """Parse a duration such as `11h50m`, `90s` or `1d` into seconds.

    Raises:
      ConfigError: the text is not a duration.
    """
    if not re.fullmatch(r"(\d+d)?(\d+h)?(\d+m)?(\d+s)?", text) or not text:
        raise ConfigError(f"--stop_after={text} must be a time such as 11h50m, 90s or 1d")
    return sum(int(number) * _UNITS[unit] for number, unit in re.findall(r"(\d+)([dhms])", text))


@contextlib.contextmanager
def requests(request: Callable[[str], None], after: float | None, at_once: Callable[[], None]) -> Iterator[None]:
    """A context that turns SIGTERM, SIGINT and a time limit into calls of `request`.

    A second SIGINT ends the process at once. A separate thread handles the signals, so they also work while the main
    thread compiles. Outside the main thread, the signal handlers stay unchanged.

    Args:
      request: called in another thread with the reason to stop.
      after: time limit in seconds from now; None for no limit.
      at_once: called before a second SIGINT ends the process.
    """
    with contextlib.ExitStack() as ending:
        if after is not None:
            timer = threading.Timer(after, request, ["the time of --stop_after"])
            timer.daemon = True
            timer.start()
            ending.callback(timer.cancel)
        if threading.current_thread() is threading.main_thread():
            ending.enter_context(_signals(request, at_once))
        yield


@contextlib.contextmanager
def _signals(request, at_once):
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    thread = threading.Thread(target=_listen, args=(ours, request, at_once), daemon=True, name="signals")
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        theirs.close()  # this ends the thread
        thread.join()
        ours.close()


def _ignore(number, frame):
    """Do nothing: the listening thread handles the signal.

    Python writes to the wakeup socket only for signals that have a Python handler.
    """


def _listen(ours, request, at_once):
    interrupted = False
    while heard := ours.recv(1):
        if heard[0] == signal.SIGTERM:
            _say("SIGTERM: finishing this step, then saving")
            request("SIGTERM")
        elif heard[0] == signal.SIGINT and not interrupted:
            interrupted = True
            _say("Ctrl-C: finishing this step, then saving; press it again to stop at once")
            request("Ctrl-C")
        elif heard[0] == signal.SIGINT:
            _say("interrupted; everything saved is complete; run the same command to resume")
            at_once()
            os._exit(_INTERRUPTED)


def _say(text):
    print(f"\n{text}", file=sys.stderr, flush=True)
