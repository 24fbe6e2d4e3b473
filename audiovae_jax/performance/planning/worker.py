"""A process that compiles for one target, with an environment of its own, watched for its memory and time."""

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

_LOOKS_PER_SECOND = 4


class Worker:
    """Compiles a config's step for a target; a context.

    A process of its own, since a process has one set of platforms and flags for its whole life, and a
    compiler that takes all of the machine's memory, or has no end, must be stopped from outside.

    Args:
      config: finalized.
      target: what to compile for.
      memory_bytes: of this machine, that the process may take; None for no limit.
      seconds: that each answer may take.

    Attributes:
      devices: what is compiled for.
      state_bytes: of the train state.
      host_peak_bytes: most memory that the process has taken so far.

    Raises:
      ConfigError: the config cannot work.
      PlanError: no answer came, for the reason that it says.
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
        """As `StepCompiler.compile`."""
        return self._ask("compile", batch_per_device)

    def flops(self, batch_per_device: int) -> float:
        """As `StepCompiler.flops`."""
        return self._ask("flops", batch_per_device)

    def close(self):
        """End the process."""
        self._connection.close()
        self._process.kill()
        self._process.join()

    def _ask(self, *request):
        self._connection.send(request)
        return self._answer()

    def _answer(self):
        deadline = time.monotonic() + self._seconds
        while not self._connection.poll(1 / _LOOKS_PER_SECOND):
            held = self._look()
            if self._memory_bytes is not None and held > self._memory_bytes:
                raise PlanError(
                    f"{self._target.name}: compiling took more than {self._memory_bytes / 1e9:.1f} GB of this "
                    "machine's memory and was stopped; give it more with --host_memory, or plan on a larger machine"
                )
            if time.monotonic() > deadline:
                raise PlanError(
                    f"{self._target.name}: compiling took more than {self._seconds / 60:g} minutes and was stopped; "
                    "give it more with --minutes"
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

    def _look(self):
        """Bytes that the process holds now; 0 where the system does not say."""
        values = {}
        with contextlib.suppress(OSError, ValueError):
            for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                name, _, value = line.partition(":")
                if name in ("VmRSS", "VmHWM"):
                    values[name] = int(value.split()[0]) * 1024
        self.host_peak_bytes = max(self.host_peak_bytes, values.get("VmHWM", 0))
        return values.get("VmRSS", 0)


def _serve(connection, config, target):
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which ends this process
    # What is taken from the cache was compiled for another target, or in no time.
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
