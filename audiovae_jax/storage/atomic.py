"""Atomic writes of files and folders."""

import contextlib
import errno
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

_UNFINISHED = re.compile(r"\.(\d+)\.tmp(\.[^.]*)?$")
_MOVED_ASIDE = re.compile(r"\.\d+\.old$")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path merges double slashes
_SILENT = 60.0  # seconds without a write after which a file may be removed
_MAX_SWAP = 1.0  # seconds between the two renames that replace a folder
_MAX_NAME = 255  # bytes, on nearly every file system


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A context with a temporary path that replaces `path` on success.

    Both have the same suffix. The file's permissions follow the user's umask, whichever library writes it.
    """
    _require_local(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, f"tmp{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        if temporary.stat().st_mode != mode:
            temporary.chmod(stat.S_IMODE(mode))
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A context with a temporary path for a folder, which replaces `path` on success.

    An existing folder at `path` is briefly renamed to `.<name>.<number>.old`. It remains there if the machine stops
    at that moment.
    """
    _require_local(path)
    path = Path(os.path.realpath(path))  # keep a symbolic link, and replace its target
    temporary = beside(path, "tmp", path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _put(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def beside(path: Path, ending: str, name: str | None = None) -> Path:
    """Return a hidden path next to `path`, unique to this process.

    Its name is `.<name>.<process>.<ending>`.

    By default, the name is that of `path` without its suffix. For a folder, pass its full name: `.2` is not a suffix in
    `Song v1.2`, and `Song v1.3` is another folder.
    """
    return path.with_name(_hidden(path.stem if name is None else name, f".{os.getpid()}.{ending}"))


def await_swap(path: Path):
    """Wait while `replacing_folder` is between its two renames of `path`.

    This takes at most a second. The renamed old folder shows that a replacement is in progress.
    """
    end = time.monotonic() + _MAX_SWAP
    while not os.path.exists(path) and _is_moved_aside(path) and time.monotonic() < end:
        time.sleep(0.005)


def remove_leftovers(folder: Path):
    """Delete the unfinished files that killed programs left in a folder.

    A file counts as left over under two conditions. The process in its name does not run on this machine, and the file
    was not written to for a minute. A process of another machine would have written to it.
    """
    try:
        names = [name for name in os.listdir(folder) if is_temporary(name)]
    except OSError:
        return
    for name in names:
        match = _UNFINISHED.search(name)
        path = folder / name
        with contextlib.suppress(OSError):
            if match and not _is_running(int(match[1])) and time.time() - path.stat().st_mtime > _SILENT:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def is_temporary(name: str) -> bool:
    """Return whether a name is a temporary one of `beside`, for an unfinished file."""
    return name.startswith(".") and (".tmp." in name or name.endswith((".tmp", ".old")))


def require_writable(path: str | Path):
    """Raise OSError unless `path` can be created; leaves nothing behind."""
    _require_local(path)
    folder = Path(path).absolute().parent
    while not os.path.exists(folder):
        if folder.parent == folder:
            raise FileNotFoundError(2, "No such file or directory", str(folder))
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(folder))
    os.rmdir(tempfile.mkdtemp(prefix=".", dir=folder))


def _require_local(path):
    if _URL.match(str(path)):
        raise OSError(errno.EINVAL, "it is a URL, and a path on this machine is needed", str(path))


def _hidden(name, ending):
    start = os.fsencode(name)[: _MAX_NAME - 1 - len(os.fsencode(ending))]
    # Drop a partial character at the end, since some file systems reject it.
    return f".{start.decode(errors='ignore') if start != os.fsencode(name) else name}{ending}"


def _is_moved_aside(path):
    path = Path(os.path.realpath(path))
    try:
        found = os.listdir(path.parent)
    except OSError:
        return False
    endings = ((name, _MOVED_ASIDE.search(name)) for name in found)
    return any(ending and name == _hidden(path.name, ending[0]) for name, ending in endings)


def _is_running(pid):
    try:
        os.kill(pid, 0)  # signal 0 only checks that the process exists
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def _put(temporary, path):
    if not path.exists():
        temporary.rename(path)
        return
    old = beside(path, "old", path.name)
    path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)
