"""Profiles of a running job with XLA's profiler, for xprof and TensorBoard."""

import contextlib
import os
import re
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from audiovae_jax.errors import ConfigError
from audiovae_jax.storage.bucket_path import BucketPath

FOLDER = "plugins"  # in a workdir; TensorBoard and xprof look there


def steps_of(text: str) -> tuple[int, int]:
    """Parse `100:105`: trace from the end of step 100 to the end of step 105.

    Raises:
      ConfigError: the text is not such a range.
    """
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if match is None or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--profile_steps={text} must be a range such as 100:105, for the five steps after step 100")
    return int(match[1]), int(match[2])


class StepTrace:
    """Traces some steps of a run to `plugins/profile/` in its workdir.

    Args:
      workdir: of the run.
      steps: the steps after which the trace starts and ends; None for no trace. A session that starts in between starts
        the trace at once.
      say: called with a line of text when the trace is written or fails.
      enabled: whether this is the first process, the only one that traces.
    """

    def __init__(
        self,
        workdir: Path | BucketPath,
        steps: tuple[int, int] | None,
        say: Callable[[str], None],
        enabled: bool = True,
    ):
        self._workdir, self._say, self._enabled = workdir, say, enabled
        self._first, self._last = steps or (0, 0)
        self._local: tempfile.TemporaryDirectory | None = None
        self._has_started = self._is_running = False

    def starts(self, step: int) -> bool:
        """Whether to start the trace after `step`; the same in all processes."""
        return self._first <= step < self._last and not self._has_started

    def ends(self, step: int) -> bool:
        """Whether to end the trace after `step`; the same in all processes."""
        return self._has_started and step == self._last

    def start(self, step: int):
        """Start the trace after `step`, whose work on the devices is finished."""
        self._has_started, self._first = True, step
        if not self._enabled:
            return
        folder = self._workdir
        if isinstance(folder, BucketPath):
            self._local = tempfile.TemporaryDirectory(prefix="audiovae_jax_profile_")
            folder = self._local.name
        with self._warning():
            jax.profiler.start_trace(folder)
            self._is_running = True

    def close(self):
        """End the trace if it is running, and write it."""
        if not self._is_running:
            return
        self._is_running = False
        with self._warning():
            jax.profiler.stop_trace()
            if self._local is not None:
                (self._workdir / FOLDER).upload(Path(self._local.name) / FOLDER)
                self._local.cleanup()
            self._say(f"a profile of steps {self._first + 1} to {self._last} is in {self._workdir / FOLDER}")

    @contextlib.contextmanager
    def _warning(self):
        try:
            yield
        except (OSError, RuntimeError) as error:  # the second for instance if another trace is running
            self._say(f"warning: no profile is written: {error}")


def serve(port: int):
    """Start JAX's profiler server, reachable from this machine only.

    JAX binds it to all network interfaces. Its sockets are restricted to loopback, which Linux can do.

    Raises:
      ConfigError: the port is in use, or its sockets cannot be restricted.
    """
    try:
        with socket.socket() as probe:  # JAX would share the port of another process
            probe.bind(("", port))
    except OSError as error:
        raise ConfigError(f"--profiler_port={port} cannot be used: {error.strerror}") from error
    jax.profiler.start_server(port)
    try:
        _restrict_to_loopback(port)
    except (OSError, AttributeError) as error:
        jax.profiler.stop_server()
        raise ConfigError(
            f"--profiler_port={port}: the server cannot be restricted to this machine ({error}); use --profile_steps"
        ) from error


def _restrict_to_loopback(port):
    restricted = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            listening = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # not a socket
            continue
        with listening:
            if listening.family in (socket.AF_INET, socket.AF_INET6) and listening.getsockname()[1] == port:
                listening.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo\0")
                restricted += 1
    if not restricted:
        raise OSError("its sockets were not found")
