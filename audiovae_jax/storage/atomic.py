"""Files and folders that are either whole or not there."""

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
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # Path makes one slash of two
_SILENT = 60.0  # seconds
_LONGEST_SWAP = 1.0  # seconds between the two renames that replace a folder
_LONGEST_NAME = 255  # bytes, on nearly every file system


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path of the same suffix, which takes the place of `path` if nothing goes wrong.

    Whatever writes it, who may read the file is as the user's umask has it.
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
    """A temporary path for a folder, which takes the place of `path` if nothing goes wrong.

    A folder that was at `path` is moved aside for that moment: if the machine stops just then, it is found
    beside, as `.<name>.<number>.old`.
    """
    _require_local(path)
    path = Path(os.path.realpath(path))  # a link stays, and what it leads to is replaced
    temporary = beside(path, "tmp", path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _put(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def beside(path: Path, ending: str, name: str | None = None) -> Path:
    """A hidden name of this process's own in the folder of `path`: `.<name>.<process>.<ending>`.

    The name is the path's without its suffix, if none is given. A folder's is given whole: in `Song v1.2`, `.2` is
    no suffix, and `Song v1.3` is another folder.
    """
    return path.with_name(_hidden(path.stem if name is None else name, f".{os.getpid()}.{ending}"))


def await_swap(path: Path):
    """Wait for as long as `replacing_folder` has nothing at `path`, at most a second.

    That is between its two renames. The folder that was moved aside shows it.
    """
    end = time.monotonic() + _LONGEST_SWAP
    while not os.path.exists(path) and _is_moved_aside(path) and time.monotonic() < end:
        time.sleep(0.005)


def remove_leftovers(folder: Path):
    """Delete what programs that were killed have left unfinished in a folder.

    That is what has the number of no process of this machine in its name, and was not written to for a minute, as
    another machine's would be.
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
    """Whether a file's name is one of `beside`: of something that was not finished."""
    return name.startswith(".") and (".tmp." in name or name.endswith((".tmp", ".old")))


def require_writable(path: str | Path):
    """Raise OSError unless something can be made at `path`; nothing is left behind."""
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
    start = os.fsencode(name)[: _LONGEST_NAME - 1 - len(os.fsencode(ending))]
    # A character that was cut in the middle would be a name that some file systems refuse.
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
        os.kill(pid, 0)  # asks whether it is there
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
