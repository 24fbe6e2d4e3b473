"""Large pages for large buffers: on a CPU, a step's memory is new to the process at every step.

XLA takes a step's temporaries from malloc and gives them back after it. With pages of 4 KB the kernel
then spends a third of a step clearing and mapping them one by one; with pages of 2 MB, next to nothing.
glibc asks for those where it is told to when the process starts, hence the restart.
"""

import builtins
import contextlib
import multiprocessing
import os
import sys
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_SETTING = "glibc.malloc.hugetlb"
_RESTARTED = "AUDIOVAE_JAX_RESTARTED"  # whatever becomes of the setting, once is enough
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart():
    """Start this process anew with large pages, where the system gives them to those who ask; else return.

    It returns where they are on or off for everyone, where GLIBC_TUNABLES says something about them
    already, where the C library has no such setting (glibc has it since 2.35), and where the process is
    none that its command line would give again: an interactive one, or a child of `multiprocessing`.
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
    path = getattr(sys.modules["__main__"], "__file__", None)  # none, or "<stdin>", where the code is typed
    is_child = multiprocessing.parent_process() is not None
    return not interactive and not is_child and path is not None and Path(path).is_file()


def _can_ask():
    try:
        library, _, version = os.confstr("CS_GNU_LIBC_VERSION").partition(" ")
        numbers = tuple(int(part) for part in version.split(".")[:2])
        return library == "glibc" and numbers >= (2, 35) and "[madvise]" in _SYSTEM.read_text()
    except (AttributeError, OSError, ValueError):
        return False
