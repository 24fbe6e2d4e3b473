"""Timing side by side, peak memory, and what the machine itself can do."""

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
    """Repeated measurements in seconds."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def summary(self) -> dict:
        """`seconds` (the median), `fastest`, `slowest` and `repeats`."""
        return {
            "seconds": self.median,
            "fastest": min(self.seconds),
            "slowest": max(self.seconds),
            "repeats": len(self.seconds),
        }

    def over(self, other: "Timing") -> float:
        """The median of the ratios, pair by pair: both saw the machine in the same state."""
        return statistics.median(a / b for a, b in zip(self.seconds, other.seconds, strict=True))


def side_by_side(
    work: dict[str, Callable[[], float]], *, repeats: int, warmup: int, say: Callable[[str], None] = lambda text: None
) -> dict[str, Timing]:
    """Time each piece of work in turn, `repeats` times round.

    In each round a piece is done twice and the second time counts, as training does one step after the
    other: while another system computes, caches go cold, and virtual machines take freed memory back.

    Args:
      work: functions that do it once and return the seconds it took.
      repeats: measured rounds.
      warmup: rounds before them.
      say: told of every round as it begins.
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
    """A function that calls `fn(*args)`, waits for its result, and returns the seconds."""

    def once():
        start = time.perf_counter()
        jax.block_until_ready(fn(*args))
        return time.perf_counter() - start

    return once


def machine() -> dict:
    """The device and the versions that a figure belongs to."""
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
    """What one device reaches here: `flops` per second of a matrix product in `dtype`, `bytes` per second of a copy.

    The product is of square matrices; the copy counts bytes read and written.
    """
    cpu = jax.devices()[0].platform == "cpu"
    n = 2048 if cpu else 8192
    a = jax.random.normal(jax.random.key(0), (n, n), dtype)
    product = _best(jax.jit(jnp.matmul), a, a)
    x = jnp.ones((1 << 25 if cpu else 1 << 29,), jnp.float32)
    # Into the memory of the last result, so that it is not the operating system's page faults that are timed.
    negate = jax.jit(jnp.negative, donate_argnums=0)
    copy = float("inf")
    for _ in range(7):
        start = time.perf_counter()
        x = jax.block_until_ready(negate(x))
        copy = min(copy, time.perf_counter() - start)
    return {"flops": 2 * n**3 / product, "bytes": 2 * x.nbytes / copy, "dtype": jnp.dtype(dtype).name}


def reset_peak_memory():
    """Forget the process's peak so far (Linux; elsewhere the peak stays that of its whole life)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """Bytes: of the device where it counts them, of its whole life; else of the process, 0 where unknown."""
    statistics_of_device = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in statistics_of_device:
        return statistics_of_device["peak_bytes_in_use"]
    return peak_host_memory()


def peak_host_memory() -> int:
    """Bytes of the process, most at one time; 0 where unknown."""
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
