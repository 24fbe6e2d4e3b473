"""A process that compiles for one target, in its own environment.

Its memory and time are limited.
"""

import contextlib
import multiprocessing
import os
import signal
import time
import traceback
from pathlib import Path

import jax
import ml_collections

from audiovae_jax.errors import PlanError, UserError
from audiovae_jax.performance.benchmark import measure
from audiovae_jax.performance.planning.compiling import Compiled, StepCompiler
from audiovae_jax.performance.planning.targets import Target

_POLLS_PER_SECOND = 4


class Worker:
    """Compiles a config's step for a target in its own process; a context manager.

    A process has one set of platforms and flags for its whole life. A compiler that needs too much memory or time must
    be stopped from outside.

    Args:
      config: finalized.
      target: the devices to compile for.
      memory_bytes: maximum memory of the process on this machine; None for no limit.
      seconds: maximum time for each answer.

    Attributes:
      devices: the devices that are compiled for.
      state_bytes: of the train state.
      host_peak_bytes: peak memory of the process so far.

    Raises:
      ConfigError: the config cannot work.
      PlanError: compiling failed, or was stopped at a limit.
    """

    def __init__(self, config: ml_collections.ConfigDict, target: Target, memory_bytes: int | None, seconds: float):
        self._target, self._memory_bytes, self._seconds = target, memory_bytes, seconds
        self.host_peak_bytes = 0
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, config.to_dict(), target), daemon=True)
        with _environment(target.environment):
            self._process.start()
        theirs.close()
        try:
            self.devices, self.state_bytes = self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error):
        self.close()

    def compile(self, batch_per_device: int) -> Compiled | None:
        """See `StepCompiler.compile`."""
        return self._ask("compile", batch_per_device)

    def flops(self, batch_per_device: int) -> float:
        """See `StepCompiler.flops`."""
        return self._ask("flops", batch_per_device)

    def close(self):
        """Kill the process."""
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _ask(self, *request):
        self._connection.send(request)
        return self._answer()

    def _answer(self):
        deadline = time.monotonic() + self._seconds
        while not self._connection.poll(1 / _POLLS_PER_SECOND):
            held = self._memory()
            if self._memory_bytes is not None and held > self._memory_bytes:
                raise PlanError(
                    f"{self._target.name}: compiling took more than {self._memory_bytes / 1e9:.1f} GB of this "
                    "machine's memory and was stopped; raise --host_memory, or plan on a larger machine"
                )
            if time.monotonic() > deadline:
                raise PlanError(
                    f"{self._target.name}: compiling took more than {self._seconds / 60:g} minutes and was stopped; "
                    "raise --minutes"
                )
        try:
            answer, peak = self._connection.recv()
        except EOFError:
            self._process.join()
            raise PlanError(
                f"{self._target.name}: the compiling process ended with status {self._process.exitcode}; see above"
            ) from None
        self.host_peak_bytes = max(self.host_peak_bytes, peak)
        if isinstance(answer, UserError):
            raise answer
        return answer

    def _memory(self):
        """Memory of the process in bytes; 0 if unknown. Updates the peak."""
        values = {}
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("VmRSS", "VmHWM"):
                    values[name] = int(value.split()[0]) * 1024
        self.host_peak_bytes = max(self.host_peak_bytes, values.get("VmHWM", 0))
        return values.get("VmRSS", 0)


def _serve(connection, config, target):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C also reaches the parent, which kills this process
    # A cached program may be another target's, and its compile time would be wrong.
    jax.config.update("jax_enable_compilation_cache", False)

    def answer(fn, *args):
        try:
            found = fn(*args)
        except UserError as error:
            found = error
        except Exception as error:
            traceback.print_exc()
            found = PlanError(f"{target.name}: compiling failed: {type(error).__name__}: {error}")
        connection.send((found, measure.peak_host_memory()))
        return found

    compiler = None

    def start():
        nonlocal compiler
        compiler = StepCompiler(ml_collections.ConfigDict(config), target)
        return compiler.devices, compiler.state_bytes

    if isinstance(answer(start), UserError):
        return
    with contextlib.suppress(EOFError):
        while True:
            name, *args = connection.recv()
            answer(getattr(compiler, name), *args)


@contextlib.contextmanager
def _environment(changes):
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
