"""A writer in its own thread, so that slow or dead servers do not slow training."""

import collections
import threading
import time
from collections.abc import Callable

from audiovae_jax.run.tracking.writer import Writer

_CAPACITY = 500  # queued records; further ones are dropped
_AGAIN_AFTER = 30.0  # seconds from a failure to the next attempt, doubled each time
_AT_MOST = 300.0  # seconds, the limit of doubling
_PATIENCE = 20.0  # seconds that the end of a run waits for queued records
_MODEL_PATIENCE = 900.0  # seconds if a model was queued


class Background(Writer):
    """Passes records to a writer in a background thread, in order.

    Args:
      name: of the service, for messages.
      connect: makes the writer. It is called in the thread, and again until it succeeds.
      warn: called with a line of text, also from the thread.
    """

    takes_models = True

    def __init__(self, name: str, connect: Callable[[], Writer], warn: Callable[[str], None]):
        self._name, self._connect, self._warn = name, connect, warn
        self._waiting: collections.deque = collections.deque()
        self._changed = threading.Condition()
        self._ending = self._busy = self._said_full = self._has_model = False
        self._lost = 0
        self._writer: Writer | None = None
        self._pause, self._failed_at = 0.0, None
        self._thread = threading.Thread(target=self._work, name=f"records for {name}", daemon=True)
        self._thread.start()

    def restart(self, first_step):
        self._put("restart", first_step)

    def scalars(self, values, step):
        self._put("scalars", dict(values), step)

    def text(self, name, text, step):
        self._put("text", name, text, step)

    def audio(self, name, audio, step, sample_rate):
        self._put("audio", name, audio, step, sample_rate)

    def image(self, name, png, step):
        self._put("image", name, png, step)

    def model(self, folder):
        """Record a saved model; `folder` must exist until `close` has returned."""
        self._has_model = True
        self._put("model", folder)

    def flush(self):
        self._put("flush")

    def close(self, finished):
        """Wait for queued records for a limited time, and warn if some are lost."""
        self._put("close", finished)
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        self._thread.join(_MODEL_PATIENCE if self._has_model and self._failed_at is None else _PATIENCE)
        with self._changed:
            lost = self._lost + len(self._waiting) + self._busy
            self._waiting.clear()
        if lost:
            self._warn(f"warning: {lost} records of this run did not reach {self._name}")

    def _put(self, *record):
        with self._changed:
            full = len(self._waiting) >= _CAPACITY and record[0] != "close"
            if full:
                self._lost += 1
            else:
                self._waiting.append(record)
                self._changed.notify_all()
        if full and not self._said_full and self._failed_at is None:
            self._said_full = True
            self._warn(f"warning: {self._name} is too slow; records are dropped, and training continues")

    def _work(self):
        while True:
            with self._changed:
                while not self._waiting and not self._ending:
                    self._changed.wait()
                if not self._waiting:
                    return
                record = self._waiting.popleft()
                self._busy = True
            try:
                self._pass_on(record)
            finally:
                self._busy = False

    def _pass_on(self, record):
        method, *arguments = record
        counts = method not in ("flush", "restart", "close")
        # At its end, a run makes a last attempt even during a pause.
        pausing = self._failed_at is not None and time.monotonic() - self._failed_at < self._pause
        if pausing and method != "close":
            self._lost += counts
            return
        try:
            if self._writer is None:
                self._writer = self._connect()
            getattr(self._writer, method)(*arguments)
        except Exception as error:  # clients of services may raise anything
            self._lost += counts
            first = self._failed_at is None
            self._failed_at = time.monotonic()
            self._pause = min(_AT_MOST, 2 * self._pause or _AGAIN_AFTER)
            if first:
                self._warn(f"warning: {self._name} accepts no records: {_reason(error)}; training continues without it")
        else:
            if self._failed_at is not None and method != "close":
                self._failed_at, self._pause = None, 0.0
                self._warn(f"{self._name} accepts records again; {self._lost} were lost")
                self._lost = 0


def _reason(error: BaseException) -> str:
    """Return the innermost cause of an error in few words, since clients nest errors."""
    for _ in range(20):
        inner = error.__cause__ or error.__context__
        if inner is None:
            break
        error = inner
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:160]
