"""Interleaved timing, peak memory, and the ceilings of the machine."""

import contextlib
import dataclasses
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp


@dataclasses.dataclass(frozen=True)
class Timing:
    """Repeated measurements, in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def summary(self) -> dict:
        """A dict of `seconds` (the median), `fastest`, `slowest` and `repeats`."""
        return {
            "seconds": self.median,
            "fastest": min(self.seconds),
            "slowest": max(self.seconds),
            "repeats": len(self.seconds),
        }

    def over(self, other: "Timing") -> float:
        """Median of the pairwise ratios to `other`.

        Both measurements of a pair saw the machine in the same state.
        """
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def side_by_side(
    work: dict[str, Callable[[], float]], *, repeats: int, warmup: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, Timing]:
    """Time several functions alternately, for `repeats` rounds.

    In each round a function runs twice, and the second run counts. This resembles training, where steps follow each
    other. In the first run, caches are cold and virtual machines may have reclaimed freed memory.

    Args:
      work: functions that do the work once and return the seconds it took.
      repeats: measured rounds.
      warmup: rounds before them.
      say: called with a line of progress at the start of every round.
    """
    taken = {name: [] for name in work}
    for i in range(warmup + repeats):
        say(f"round {i + 1} of {warmup + repeats}" + " (to warm up)" * (i < warmup))
        for name, once in work.items():
            once()
            seconds = once()
            if i >= warmup:
                taken[name].append(seconds)
    return {name: Timing(tuple(seconds)) for name, seconds in taken.items()}


def timed(fn: Callable, *args) -> Callable[[], float]:
    """Return a function that runs `fn(*args)` to completion and returns the seconds."""

    def once():
        start = time.perf_counter()
        jax.block_until_ready(fn(*args))
        return time.perf_counter() - start

    return once


def machine() -> dict:
    """The device and versions that a measurement was made with."""
    device = jax.devices()[0]
    return {
        "device": device.device_kind if device.platform != "cpu" else f"{_cores()} CPU cores ({_cpu_name()})",
        "devices": jax.device_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "huge_pages": "glibc.malloc.hugetlb=1" in os.environ.get("GLIBC_TUNABLES", ""),
        "date": time.strftime("%Y-%m-%d"),
    }


def ceilings(dtype) -> dict:
    """Measure the peak rates of one device.

    Returns:
      `flops`: operations per second of a product of square matrices in `dtype`. `bytes`: per second of a copy, read and
      written. `dtype`: the name of the type.
    """
    cpu = jax.devices()[0].platform == "cpu"
    n = 2048 if cpu else 8192
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = _best(jax.jit(jnp.matmul), a, a)
    x = jnp.ones((1 << 25 if cpu else 1 << 29,), jnp.float32)
    # The donated buffer is reused for the result, so that page faults are not timed.
    negate = jax.jit(jnp.negative, donate_argnums=0)
    copy = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        x = jax.block_until_ready(negate(x))
        copy = min(copy, time.perf_counter() - start)
    return {"flops": 2 * n**3 / product, "bytes": 2 * x.nbytes / copy, "dtype": jnp.dtype(dtype).name}


def reset_peak_memory():
    """Reset the peak memory of the process, on Linux.

    Elsewhere this does nothing, and the peak covers the whole life of the process.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Peak memory in bytes: of the device if it reports it, else of the process.

    A device's peak covers the whole life of the process. Returns 0 if unknown.
    """
    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics_of_device:
        return statistics_of_device["peak_bytes_in_use"]
    return peak_host_memory()


def peak_host_memory() -> int:
    """Peak memory of the process in bytes; 0 if unknown."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:  # Windows
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _best(fn, *args):
    once = timed(fn, *args)
    once()
    return min(once() for _ in range(7))


def _cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_name():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()
