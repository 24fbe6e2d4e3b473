"""The processes of one run: they start, stop and fail together."""

import contextlib
import faulthandler
import itertools
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from jax._src import distributed  # jax has no public name for its client; Orbax uses it too

from audiovae_jax import errors
from audiovae_jax.distributed import agreement, progress
from audiovae_jax.distributed.launch import HEARTBEAT_TIMEOUT
from audiovae_jax.distributed.progress import Beat, Progress
from audiovae_jax.errors import ConfigError, StuckError, TrainingError, UserError

_PERIOD = 1.0  # seconds between heartbeats
_GRACE = 10.0  # seconds for a process to end by itself after another has failed
_WRITING_GRACE = 60.0  # seconds, while a checkpoint is being written
_MAX_NAMED = 4  # processes that a message names
_runs = itertools.count()


class Group:
    """The processes of a run; with one process, it only handles requests to stop.

    A thread exchanges messages with the other processes once a second. They go through the key-value store of
    `jax.distributed`, whose server is process 0. The thread does not use the accelerators, so it also works while
    a collective operation hangs because a process is gone.

    Args:
      heartbeat_timeout: seconds without a heartbeat after which a process counts as dead.
      report: called with the failure before a background thread has to end the process.
      stuck_timeout: seconds without progress after which a process counts as stuck; 0 for no limit. The run then
        fails in all processes, and each prints the stack traces of its threads to standard error.

    Attributes:
      progress: the progress of this process. Its heartbeats report it, and a session's clock reads its seconds.
    """

    def __init__(
        self,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        report: Callable[[UserError], None] = lambda failure: None,
        stuck_timeout: float = 0.0,
    ):
        self.progress = Progress()
        self._report, self._stuck_timeout = report, stuck_timeout
        self.index, self.count = jax.process_index(), jax.process_count()
        self._timeout = heartbeat_timeout
        self._failure: UserError | None = None
        self._asked: str | None = None
        self._stop_at: tuple[int, str] | None = None  # the call of `stop_reason` at which to stop, and the reason
        self._asked_times = 0  # number of calls of `stop_reason`
        self._boundary = threading.Lock()  # held while the processes agree, so that none starts another step
        self._before_exit: list[Callable[[], None]] = []
        self._is_writing: Callable[[], bool] = lambda: False
        self._left = threading.Event()
        self._seen: dict[int, tuple[int, float]] = {}  # by process: its last heartbeat, and when it arrived
        self._dead: set[int] = set()
        self._numbers = itertools.count()
        self._waiting = 0.0
        self._beats: dict[int, Beat] = {}  # latest heartbeat of each process that has not left
        self._thread: threading.Thread | None = None

    def __enter__(self):
        if self.count > 1:
            self._client = distributed.global_state.client
            if self._client is None:
                raise ConfigError("several processes, but jax.distributed.initialize was not called before training")
            self._prefix = f"audiovae_jax/{next(_runs)}"
            self._thread = threading.Thread(target=self._watch, daemon=True, name="other processes")
            self._thread.start()
        return self

    def __exit__(self, *error):
        if self._thread is None:
            return
        with contextlib.suppress(Exception):  # the store ends with process 0
            self._leave()
        self._left.set()
        self._thread.join()
        self._thread = None

    def before_exit(self, action: Callable[[], None]):
        """Register a call to make if a background thread has to end the process."""
        self._before_exit.append(action)

    def let_write(self, is_writing: Callable[[], bool]):
        """Register a check that lets a write finish before the process ends.

        While it returns True, a thread that ends the process waits, for up to a minute.
        """
        self._is_writing = is_writing

    def slowest(self, waiting: float) -> tuple[float, str]:
        """Publish this process's share of waiting for data; return the largest share.

        Returns:
          `(fraction, name of its process)`. The other processes' fractions are those of their last heartbeats. With
          one process, the name is empty.
        """
        self._waiting = waiting
        if self.count == 1:
            return waiting, ""
        beats = dict(self._beats)
        fractions = {index: beat.waiting for index, beat in beats.items()} | {self.index: waiting}
        worst = max(fractions, key=fractions.get)
        host = beats[worst].host if worst in beats else socket.gethostname()
        return fractions[worst], f"process {worst} of {self.count} (on {host})"

    @contextlib.contextmanager
    def together(self):
        """A context that fails in all processes if it fails in one.

        All of them raise the error of the first process that failed.
        """
        try:
            yield
        except Exception as error:
            if self.count == 1 or error is self._failure:
                raise
            if self._failure is None and _is_of_a_collective(error):
                self._await_news()  # the cause may be a lost process; report that instead of this error
            is_first = self._failure is None and self._publish(error)
            if is_first and not isinstance(error, UserError):
                raise  # a bug: keep its traceback
            raise self._failure from error

    def meet(self, name: str, same: dict[str, Any] | None = None, tell: Any = None) -> Any:
        """Wait until all processes have called this.

        Args:
          name: name of this barrier; each name is used once.
          same: values that must be equal in all processes, as JSON.
          tell: value that process 0 sends to the others, as JSON.

        Returns:
          `tell` of process 0.

        Raises:
          ConfigError: `same` differs between processes; the message lists the keys.
          UserError: a process failed before it called this.
        """
        if self.count == 1:
            return tell
        with self.progress.phase("waiting"):
            return self._meet(name, same, tell)

    def _meet(self, name, same, tell):
        self._set(f"meet/{name}/{self.index}", json.dumps([socket.gethostname(), same or {}]))
        if self.index != 0:
            return json.loads(self._get(f"meet/{name}/told"))
        mine = json.loads(json.dumps(same or {}))
        for other in range(1, self.count):
            host, theirs = json.loads(self._get(f"meet/{name}/{other}"))
            differing = [
                f"\n  {key}: {mine.get(key)!r} in process 0, {theirs.get(key)!r} there"
                for key in sorted(mine.keys() | theirs.keys())
                if mine.get(key) != theirs.get(key)
            ]
            if differing:
                raise ConfigError(
                    f"process {other} of {self.count} (on {host}) belongs to another run:{''.join(differing)}\n"
                    "start all processes with the same command, code and data"
                )
        self._set(f"meet/{name}/told", json.dumps(tell))
        return tell

    def of_first(self, name: str, value: Any) -> Any:
        """Return the `value` of process 0, as JSON, in all processes.

        Process 0 does not wait for the others. Each name is used once.
        """
        if self.count == 1:
            return value
        if self.index == 0:
            self._set(name, json.dumps(value))
            return value
        return json.loads(self._get(name))

    def ask_to_stop(self, reason: str):
        """Request that all processes stop at the same step; callable from any thread."""
        if self.count == 1:
            self._stop_at = self._stop_at or (0, reason)
            return
        self._asked = self._asked or f"{reason} (in process {self.index} of {self.count})"

    @property
    def is_asked_to_stop(self) -> bool:
        """Whether this process was asked to stop, or all processes have agreed to."""
        return self._asked is not None or self._stop_at is not None

    def stop_reason(self) -> str | None:
        """Return why the run must stop before its next step, or None to continue.

        The result is the same in all processes if they call this equally often. The processes agree on a number of
        calls and not on a step, because after a rollback it could take long to reach that step.

        Raises:
          UserError: another process has failed.
        """
        return self._ask()

    def stop_reason_after(self, call: threading.Thread) -> str | None:
        """Return `stop_reason()` when `call` has ended, or earlier to stop the run.

        It also raises early if another process has failed. It counts as one call of `stop_reason`: all processes must
        call it, each with its own `call`.
        """
        while call.is_alive() and self._failure is None and not self._stops_at(self._asked_times + 1):
            call.join(_PERIOD / 10)
        return self._ask()

    def _ask(self):
        with self._boundary:
            self._asked_times += 1
            if self._failure is not None:
                raise self._failure
            return self._stop_at[1] if self._stops_at(self._asked_times) else None

    def _stops_at(self, question):
        return self._stop_at is not None and question >= self._stop_at[0]

    def _watch(self):
        failed_at = None
        while not self._left.wait(_PERIOD):
            self._exchange()
            if self._failure is None:
                continue
            failed_at = failed_at or time.monotonic()
            may_finish = not self._dead and self._is_writing()  # a write needs all processes
            if time.monotonic() - failed_at > (_WRITING_GRACE if may_finish else _GRACE):
                self._end()

    def _exchange(self):
        """Send a heartbeat, and read the messages of all processes: `{key: value}`."""
        try:
            beat = Beat(next(self._numbers), socket.gethostname(), self.progress.place(), self._waiting)
            self._set(f"news/alive/{self.index}", json.dumps(beat), again=True)
            if self._asked is not None:
                self._set(f"news/stop/{self.index}", self._asked, again=True)
            start = len(f"{self._prefix}/news/")
            news = {key[start:]: value for key, value in self._client.key_value_dir_get(f"{self._prefix}/news/")}
        except jax.errors.JaxRuntimeError:
            if not self._left.is_set():
                self._fail(
                    TrainingError(
                        f"process 0 of {self.count}, which coordinates the others, is gone; see its log. Run the same "
                        "command on every host to resume from the last checkpoint"
                    )
                )
            return {}
        if "failed" in news:
            self._fail(_as_error(json.loads(news["failed"])))
        beats = {i: news[f"alive/{i}"] for i in range(self.count) if f"alive/{i}" in news and f"left/{i}" not in news}
        self._beats = {i: Beat.parse(beat) for i, beat in beats.items()}
        self._note_silence()
        self._note_stuck(sum(key.startswith("left/") for key in news))
        if self._stop_at is None and self._failure is None and any(key.startswith("stop/") for key in news):
            self._agree_on_the_step()
        return news

    def _note_silence(self):
        now = time.monotonic()
        for other, beat in self._beats.items():
            if other not in self._seen or self._seen[other][0] != beat.number:
                self._seen[other] = (beat.number, now)
            elif now - self._seen[other][1] > self._timeout:
                self._dead.add(other)
                if self._failure is not None:
                    continue
                self._publish(
                    TrainingError(
                        f"process {other} of {self.count} (on {beat.host}) sent no heartbeat for {self._timeout:.0f} "
                        "s; see its log. Run the same command on every host to resume from the last checkpoint"
                    ),
                    own=False,
                )

    def _note_stuck(self, left):
        beats = self._beats
        if not self._stuck_timeout or self._failure is not None or not beats or len(beats) + left < self.count:
            return
        stuck = progress.stuck({index: beat.place for index, beat in beats.items()}, self._stuck_timeout)
        if not stuck:
            return
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # process 0 is gone
            missing = agreement.missing(self._client, self.count)
            stuck = [index for index in stuck if index in missing] or stuck
        others = [index for index in beats if index not in stuck]
        seconds = min(beats[index].place.seconds for index in stuck)
        self._publish(
            StuckError(
                f"no progress for {seconds:.0f} s in {self._names(stuck)}"
                + (f"; waiting for that: {self._names(others)}" if others else "")
                + "; see the stack traces in each log. Run the same command on every host to resume from the last "
                "checkpoint, or raise config.stuck_timeout"
            ),
            own=False,
        )

    def _names(self, processes):
        named = [f"process {i} of {self.count} ({self._beats[i]})" for i in processes[:_MAX_NAMED]]
        return ", ".join(named) + (f" and {len(processes) - _MAX_NAMED} more" if len(processes) > _MAX_NAMED else "")

    def _agree_on_the_step(self):
        """Agree on the first call of `stop_reason` that no process has made yet."""
        # Runs in the watching threads only: a main thread may wait for a step that needs another process.
        with self._boundary:
            self._set(f"news/at/{self.index}", str(self._asked_times))
            self._stop_at = (sys.maxsize, "")
            while not self._left.is_set() and self._failure is None:
                news = self._exchange()
                at = [int(value) for key, value in news.items() if key.startswith("at/")]
                if len(at) == self.count:
                    reasons = {int(key[len("stop/") :]): why for key, why in news.items() if key.startswith("stop/")}
                    self._stop_at = (max(at) + 1, reasons[min(reasons)])
                    return
                self._left.wait(_PERIOD / 10)

    def _publish(self, error, own=True):
        """Report a failure to all processes, and return whether it is the first.

        Args:
          error: the failure.
          own: whether this process failed; otherwise another one is dead.
        """
        message = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        if own and self.index != 0:
            message = f"process {self.index} of {self.count} (on {socket.gethostname()}): {message}"
        record = ours = json.dumps([type(error).__name__, message])
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process reported first, or process 0 is gone
            self._set("news/failed", ours)
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            record = self._client.blocking_key_value_get(f"{self._prefix}/news/failed", 1000)
        self._fail(_as_error(json.loads(record)))
        return record == ours

    def _fail(self, failure):
        """Keep the first failure, which ends the run."""
        if self._failure is not None:
            return
        if isinstance(failure, StuckError):  # print the stacks before the main thread moves on
            with contextlib.suppress(Exception):  # standard error may be closed
                print(f"stacks of process {self.index} of {self.count}: {failure}", file=sys.stderr, flush=True)
                faulthandler.dump_traceback()
        self._failure = failure

    def _await_news(self):
        deadline = time.monotonic() + self._timeout + 2 * _PERIOD
        while self._failure is None and time.monotonic() < deadline:
            time.sleep(_PERIOD / 10)

    def _leave(self):
        """Announce the regular end of this process's heartbeats.

        After a failure, process 0 waits for the others to leave, so that all of them can read the failure.
        """
        self._set(f"news/left/{self.index}", "", again=True)
        deadline = time.monotonic() + _GRACE
        while self.index == 0 and self._failure is not None and time.monotonic() < deadline:
            news = dict(self._client.key_value_dir_get(f"{self._prefix}/news/left"))
            if len(news) + len(self._dead) >= self.count:
                time.sleep(_PERIOD / 2)  # else the others report that the store is gone while they end
                return
            time.sleep(_PERIOD / 10)

    def _end(self):
        """End the process even if its main thread is blocked."""
        self._report(self._failure)
        with contextlib.suppress(Exception):
            self._leave()
        for action in self._before_exit:
            with contextlib.suppress(Exception):
                action()
        os._exit(1)

    def _set(self, key, value, again=False):
        self._client.key_value_set(f"{self._prefix}/{key}", value, allow_overwrite=again)

    def _get(self, key):
        """Wait for a value that another process sets, and return it."""
        while True:
            if self._failure is not None:
                raise self._failure
            try:
                return self._client.blocking_key_value_get(f"{self._prefix}/{key}", int(1000 * _PERIOD))
            except jax.errors.JaxRuntimeError as error:
                if "DEADLINE_EXCEEDED" not in str(error):
                    raise


def _as_error(record):
    kind, message = record
    kind = getattr(errors, kind, TrainingError)
    return (kind if isinstance(kind, type) and issubclass(kind, UserError) else TrainingError)(message)


def _is_of_a_collective(error):
    return isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" not in str(error)
