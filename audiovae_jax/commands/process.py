"""Process-wide settings that only commands may change.

These are huge pages, log filters and import paths. This module imports no JAX, because a restart must come before that
import.
"""

import builtins
import contextlib
import faulthandler
import importlib.util
import io
import logging
import mmap
import multiprocessing
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

_SOURCES = ("/orbax/", "/tensorstore/")
_TUNABLES = "GLIBC_TUNABLES"
_SETTING = "glibc.malloc.hugetlb"
_RESTARTED = "AUDIOVAE_JAX_RESTARTED"  # set to prevent a second restart, even if the setting has no effect
_NCCL_LIMIT = "xla_gpu_nccl_termination_timeout_seconds"
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def prepare():
    """Apply the settings that every command needs."""
    from absl import logging as absl_logging

    from audiovae_jax.commands import bundled_configs
    from audiovae_jax.training import compilation

    # Modules of the user are imported from the working directory.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    # File names that are not valid UTF-8 must still be printable.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    bundled_configs.offer()
    compilation.use_cache()
    drop_orbax_log_lines()
    absl_logging.set_verbosity(absl_logging.ERROR)  # XLA logs every backend that it tries
    warnings.filterwarnings("default", message=r"config\.|--", category=DeprecationWarning)


def end(message: str) -> NoReturn:
    """End this process at once with status 1, and report the reason."""
    print(message, file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(1)


def show_stacks_on_signal():
    """Print the stacks of all threads to standard error on SIGUSR1.

    The process continues.
    """
    if hasattr(faulthandler, "register"):  # not on Windows
        faulthandler.register(signal.SIGUSR1)


def limit_nccl(seconds: float):
    """Limit the time of an NCCL operation, unless XLA_FLAGS sets a limit.

    Call this before jax uses the devices. XLA has no limit by default. XLA aborts on unknown flags. So XLA_FLAGS is
    changed only if there are GPU plugins, and both they and jaxlib know the flag.
    """
    import jaxlib

    flags = os.environ.get("XLA_FLAGS", "")
    found = importlib.util.find_spec("jax_plugins")  # a namespace package, with one package per kind of device
    folders = [] if found is None else map(Path, found.submodule_search_locations)
    plugins = [library for folder in folders for library in folder.glob("xla_*/*.so")]
    readers = [*plugins, *Path(jaxlib.__file__).parent.glob("libjax_common*")]
    if seconds > 0 and plugins and _NCCL_LIMIT not in flags and all(map(_knows_limit, readers)):
        os.environ["XLA_FLAGS"] = f"{flags} --{_NCCL_LIMIT}={int(seconds)}".strip()


def _knows_limit(library):
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(_NCCL_LIMIT.encode()) >= 0


def restart_with_huge_pages():
    """Restart this process with huge pages, if the system offers them on request.

    A CPU step allocates its temporaries with malloc and frees them afterwards. With 4 KB pages the kernel spends a
    third of a step clearing and mapping them. glibc requests 2 MB pages only if this is set when the process starts.

    The function returns without a restart if

    - huge pages are always on or always off,
    - GLIBC_TUNABLES already sets them,
    - the C library lacks the setting (glibc has it since 2.35), or
    - the command line would not reproduce the process: it is interactive or a child of `multiprocessing`.
    """
    tunables = os.environ.get(_TUNABLES, "")
    if _SETTING in tunables or _RESTARTED in os.environ or not _can_ask():
        return
    if not sys.executable or not _runs_a_script():
        return
    os.environ[_RESTARTED] = "1"
    os.environ[_TUNABLES] = ":".join(filter(None, [tunables, f"{_SETTING}=1"]))
    sys.stdout.flush()
    sys.stderr.flush()
    with contextlib.suppress(OSError):
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _runs_a_script():
    interactive = sys.flags.interactive or hasattr(sys, "ps1") or hasattr(builtins, "__IPYTHON__")
    path = getattr(sys.modules["__main__"], "__file__", None)  # None or "<stdin>" in interactive use
    is_child = multiprocessing.parent_process() is not None
    return not interactive and not is_child and path is not None and Path(path).is_file()


def _can_ask():
    try:
        library, _, version = os.confstr("CS_GNU_LIBC_VERSION").partition(" ")
        numbers = tuple(int(part) for part in version.split(".")[:2])
        return library == "glibc" and numbers >= (2, 35) and "[madvise]" in _SYSTEM.read_text()
    except (AttributeError, OSError, ValueError):
        return False


def drop_orbax_log_lines():
    """Drop Orbax and TensorStore log lines that duplicate our own errors.

    Their threads log a line or a traceback for each array when a folder is not writable or a write fails.
    """
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if _is_of_others not in logger.filters:
            logger.addFilter(_is_of_others)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


def _is_of_others(record):
    """Return whether a log record is not from Orbax, and is kept.

    Records from Orbax's code and about failed writes of arrays are dropped.
    """
    if record.name == "absl":
        return not _is_theirs(record.pathname)
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        text += "".join(traceback.format_tb(record.exc_info[1].__traceback__))
    return "exception was never retrieved" not in text or not (_is_theirs(text) or "OCDBT" in text or "zarr" in text)


class _Hook:
    """A `sys.unraisablehook` that drops errors after the event loop was closed."""

    def __init__(self, previous):
        self._previous = previous

    def __call__(self, unraisable):
        code = getattr(unraisable.object, "cr_code", None)
        if str(unraisable.exc_value) == "Event loop is closed" or (code and _is_theirs(code.co_filename)):
            return
        self._previous(unraisable)


def _is_theirs(path):
    return any(source in path.replace("\\", "/") for source in _SOURCES)
