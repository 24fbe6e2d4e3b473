"""The restart of a command with huge pages. It imports no JAX, so that the second process alone has to."""

import builtins
import contextlib
import multiprocessing
import os
import sys
from pathlib import Path

_TUNABLES = "GLIBC_TUNABLES"
_SETTING = "glibc.malloc.hugetlb"
_RESTARTED = "AUDIOVAE_JAX_RESTARTED"  # set to prevent a second restart, even if the setting has no effect
_SYSTEM = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart():
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
