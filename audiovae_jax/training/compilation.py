"""Compiling: a persistent cache of programs, and memory returned afterwards."""

import contextlib
import ctypes
import gc
import importlib.metadata
import os
from collections.abc import Callable
from pathlib import Path

import jax
from jax._src import compilation_cache  # jax has no public name for reading an entry

from audiovae_jax.storage.bucket_path import BucketPath

_MAX_CACHE = 20_000_000_000  # bytes
_CHECKED = ".checked"  # file in the cache, as old as its newest checked entry
_SHORTEST = "jax_persistent_cache_min_compile_time_secs"
_COMPILERS = ("jax", "jaxlib", "libtpu")


def use_cache():
    """Cache compiled programs in the user's cache folder.

    JAX_COMPILATION_CACHE_DIR takes precedence. Small programs are cached too, unless
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS is set: a run starts with about 200 of them.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(_own_cache()))
    if getattr(jax.config, _SHORTEST) == 1.0 and _SHORTEST.upper() not in os.environ:
        jax.config.update(_SHORTEST, 0.0)


def share_cache(folder: Path | BucketPath):
    """Cache compiled programs in a folder that all processes of a run see.

    A folder that the user has chosen takes precedence. Only the first process writes entries. In its own cache folder,
    the others would not find them.

    Entries are code. So the folder is private to this user, and a folder of another user is not used.
    """
    if jax.config.jax_compilation_cache_dir != str(_own_cache()):
        return
    if isinstance(folder, Path):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid != os.getuid():
                return
        except OSError:
            return
    elif _SHORTEST.upper() not in os.environ:
        jax.config.update(_SHORTEST, 1.0)  # requests take longer than compiling a small program
    jax.config.update("jax_compilation_cache_dir", str(folder))


def mend_cache(max_bytes: int = _MAX_CACHE):
    """Delete torn entries of the compilation cache, and the oldest above a limit.

    A process that is killed while it writes an entry leaves a part of it. jax would warn and compile that program at
    every start. Each entry is read once, at the first call after it was written.

    A cache in a bucket is left alone. The size is not limited in a folder that the user has chosen, or if
    `jax_compilation_cache_max_size` is set.

    Args:
      max_bytes: limit of the size.
    """
    if "://" in jax.config.jax_compilation_cache_dir:
        return
    folder = Path(jax.config.jax_compilation_cache_dir)
    with contextlib.suppress(OSError):  # the cache is optional, and other runs change it at the same time
        is_ours = "JAX_COMPILATION_CACHE_DIR" not in os.environ and jax.config.jax_compilation_cache_max_size == -1
        checked = (folder / _CHECKED).stat().st_mtime_ns if (folder / _CHECKED).exists() else 0
        found = [(path.stat(), path) for path in folder.glob("*-cache")]
        total, newest = 0, checked
        for status, path in sorted(found, key=lambda each: each[0].st_mtime_ns, reverse=True):
            total, newest = total + status.st_size, max(newest, status.st_mtime_ns)
            if (is_ours and total > max_bytes) or (status.st_mtime_ns > checked and not _is_intact(path)):
                path.unlink(missing_ok=True)
        (folder / _CHECKED).touch()
        os.utime(folder / _CHECKED, ns=(newest, newest))


def _is_intact(entry):
    try:
        compilation_cache.decompress_executable(entry.read_bytes())
    except OSError:
        return True
    except Exception:  # of zlib or zstandard
        return False
    return True


def _own_cache():
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "audiovae_jax" / "xla"


def compiler_versions() -> dict[str, str | None]:
    """Return the versions of the installed compilers and jax's device plugins."""
    plugins = (plugin.dist for plugin in importlib.metadata.entry_points(group="jax_plugins"))
    names = (*_COMPILERS, *(plugin.name for plugin in plugins if plugin is not None))
    return {f"version of {name}": _version(name) for name in names}


def compiler_flags() -> dict[str, str]:
    """Return the flags of the compilers in the environment, without those for dumps."""
    return {
        name: " ".join(flag for flag in os.environ.get(name, "").split() if not flag.startswith("--xla_dump_"))
        for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
    }


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def compiled(function: jax.stages.Wrapped, *args, count: Callable[[float], None] | None = None) -> jax.stages.Compiled:
    """Return `function.lower(*args).compile()`, in less time and memory.

    Args:
      function: a jitted function.
      args: arrays, or their shapes.
      count: called with the floating-point operations of a call on one device, if the compiler counts them.
    """
    with sparing():
        lowered = function.lower(*args)
        # For GPUs, XLA does not count the work of library calls in the compiled program.
        if count is not None and (flops := (lowered.cost_analysis() or {}).get("flops")):
            count(flops)
        return lowered.compile()


@contextlib.contextmanager
def sparing():
    """A context for tracing and compiling that saves time and memory.

    Python's garbage collector is paused: its passes over the objects of a trace need a quarter of the tracing time.
    Afterwards malloc returns freed memory to the system: 2.7 GB after compiling the step of `configs/base.py`, 1 GB
    after loading it from the cache.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()
    _give_back()


def forget():
    """Clear jax's caches of traced and compiled functions in this process.

    The next call of each function traces it again. After creating the state of `configs/tiny.py` this frees 0.19 GB.
    """
    jax.clear_caches()
    gc.collect()
    _give_back()


def _give_back():
    with contextlib.suppress(AttributeError, OSError, TypeError):  # where the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)
