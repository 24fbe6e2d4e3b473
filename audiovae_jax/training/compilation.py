"""What XLA compiles is kept, so that it is compiled once; the memory that compiling took is not."""

import contextlib
import ctypes
import gc
import os
from pathlib import Path

import jax


def use_cache():
    """Keep what XLA compiles in the user's cache folder, unless JAX_COMPILATION_CACHE_DIR says where.

    Small programs too, unless JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS says which: a run begins with some 200.
    """
    if jax.config.jax_compilation_cache_dir is None:
        root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "audiovae_jax" / "xla"))
    is_default = jax.config.jax_persistent_cache_min_compile_time_secs == 1.0
    if is_default and "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def compiled(function: jax.stages.Wrapped, *args) -> jax.stages.Compiled:
    """What `function.lower(*args).compile()` returns, sooner and in less memory.

    Args:
      function: a jitted one.
      args: arrays or their shapes.
    """
    with sparing():
        return function.lower(*args).compile()


@contextlib.contextmanager
def sparing():
    """For tracing and compiling: sooner, and with less memory taken afterwards.

    Python's garbage collector stands still meanwhile: its passes over the many objects of a trace are a
    quarter of the time that tracing takes. The memory that compiling has freed is given back to the system,
    since malloc holds on to it for later: 1 GB of a process that has loaded a step with the published
    discriminators from the cache, and 2.7 GB of one that has compiled it.
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
    """Give back what jax keeps of all that this process has traced and compiled, also of what is not ours.

    What is called again is traced again. Of checking `configs/tiny.py` and drawing its parameters, it is 0.19 GB.
    """
    jax.clear_caches()
    gc.collect()
    _give_back()


def _give_back():
    with contextlib.suppress(AttributeError, OSError, TypeError):  # where the C library is not glibc
        ctypes.CDLL(None).malloc_trim(0)
