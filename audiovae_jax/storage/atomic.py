"""Files and folders that are either whole or not there."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

_LONGEST_NAME = 255  # bytes, on nearly every file system


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path of the same suffix, which takes the place of `path` if nothing goes wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path, f"tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A temporary path for a folder, which takes the place of `path` if nothing goes wrong.

    A folder that was at `path` is moved aside for that moment: if the machine stops just then, it is found
    beside, as `.<name>.<number>.old`.
    """
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
    ending, name = f".{os.getpid()}.{ending}", path.stem if name is None else name
    start = os.fsencode(name)[: _LONGEST_NAME - 1 - len(os.fsencode(ending))]
    # A character that was cut in the middle would be a name that some file systems refuse.
    return path.with_name(f".{start.decode(errors='ignore') if start != os.fsencode(name) else name}{ending}")


def is_temporary(name: str) -> bool:
    """Whether a file's name is one of `beside`: of something that was not finished."""
    return name.startswith(".") and (".tmp." in name or name.endswith((".tmp", ".old")))


def require_writable(path: str | Path):
    """Raise OSError unless something can be made at `path`; nothing is left behind."""
    folder = Path(path).absolute().parent
    while not os.path.exists(folder):
        if folder.parent == folder:
            raise FileNotFoundError(2, "No such file or directory", str(folder))
        folder = folder.parent
    if not folder.is_dir():
        raise NotADirectoryError(20, "Not a directory", str(folder))
    os.rmdir(tempfile.mkdtemp(prefix=".", dir=folder))


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
