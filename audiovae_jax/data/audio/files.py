"""Finding the files under a folder, each once, even with symbolic links.

Hidden files and folders are left out, such as the `._NAME` files of macOS and `.ipynb_checkpoints`.
"""

import os
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from audiovae_jax.data.audio.audio_file import UNREAD_EXTENSIONS
from audiovae_jax.data.formats import containers
from audiovae_jax.errors import printable
from audiovae_jax.storage import atomic

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_HIDDEN = "hidden files and folders, such as those of macOS and Jupyter, are left out"
_MAC_ARCHIVE = "__MACOSX"  # the folder of `._NAME` files in archives that macOS made


def hidden(name: str) -> str | None:
    """Return the part of a name that ends with its first hidden folder or file.

    Args:
      name: of a file relative to a root, with `/` between folders.

    Returns:
      The part, or None if nothing is hidden.
    """
    parts = name.split("/")
    for i, part in enumerate(parts, start=1):
        if part == _MAC_ARCHIVE or (part.startswith(".") and part not in (".", "..")):
            return "/".join(parts[:i])
    return None


def is_read(name: str, extensions: Collection[str]) -> bool:
    """Return whether a file under a root is one of its audio files, by its name."""
    return name.lower().endswith(tuple(extensions)) and hidden(name) is None


def why_unread(name: str) -> str | None:
    """Return why a file that is audio by its name is not read, or None.

    The reason contains the remedy.
    """
    for suffix in COMPRESSED_TARS:
        if name.lower().endswith(suffix):
            return f"{suffix} cannot be read at random positions; unpack it, or decompress it to a .tar"
    for suffix in UNREAD_EXTENSIONS:
        if name.lower().endswith(suffix):
            remedy = containers.REMEDY if suffix in containers.SUFFIXES else "convert it to FLAC"
            return f"{suffix} is not read; {remedy}"
    return None


def ignored(names: Iterable[str], extensions: Collection[str]) -> dict[str, str]:
    """Return why files that may be audio are left out, by name.

    A hidden folder is named once, instead of its files. Other files, such as pictures, are not named.

    Args:
      names: of files relative to a root.
      extensions: of the names that are read, in lower case.
    """
    reasons = {}
    for name in names:
        part = hidden(name)
        if part is None:
            reason = None if is_read(name, extensions) else why_unread(name)
            if reason is not None:
                reasons[name] = reason
        elif part != name or name.lower().endswith(tuple(extensions)):
            reasons[part] = _HIDDEN
    return reasons


def find(root: str | Path, extensions: Collection[str], leave_out: Collection[Path] = ()) -> list[Path]:
    """Return the files under `root`; see `scan`."""
    return scan(root, extensions, leave_out)[0]


def scan(
    root: str | Path, extensions: Collection[str], leave_out: Collection[Path] = ()
) -> tuple[list[Path], list[tuple[str, str]]]:
    """Return the files under `root`, at any depth, sorted, and those left out.

    Symbolic links are followed. Each file is listed once, by its own path if that is under `root`, else by a link's.

    Args:
      root: a folder.
      extensions: of the names, in lower case, with the dot.
      leave_out: folders to skip.

    Returns:
      The files, and `(name, reason)` of each that `ignored` names.
    """
    seen = {os.path.realpath(folder) for folder in leave_out}
    extensions = tuple(extensions)
    found, linked_files, left_out, waiting = [], [], [], [os.fspath(root)]
    while waiting:
        linked_folders = []
        for folder in waiting:
            for file in _walk(folder, seen, linked_folders):
                if is_read(file.name, extensions):
                    (linked_files if file.is_symlink() else found).append(file.path)
                elif not atomic.is_temporary(file.name):
                    inside = f"{file.name}/" if _holds(file.is_dir) else file.name
                    left_out += [(file.path, reason) for reason in ignored([inside], extensions).values()]
        # Links are followed last, so that files under the root are listed by their own paths.
        waiting = sorted(linked_folders)
    taken = _real_paths(found) if linked_files else set()
    for path in sorted(linked_files):
        target = os.path.realpath(path)
        if target not in taken:
            taken.add(target)
            found.append(path)
    return sorted(map(Path, found)), sorted((printable(path), reason) for path, reason in left_out)


def _walk(folder, seen, linked_folders) -> Iterator[os.DirEntry]:
    """Iterate over the files and hidden folders under `folder`.

    Links to folders are not followed. Folders in `seen` and pipes are skipped. Linked folders are added to
    `linked_folders`.
    """
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        real = os.path.realpath(folder)
        if real in seen:
            continue
        seen.add(real)
        try:
            with os.scandir(folder) as listing:
                entries = list(listing)
        except OSError:  # deleted or unreadable, so its files cannot be used either
            continue
        for entry in entries:
            if _holds(entry.is_dir):
                if hidden(entry.name) is None:
                    (linked_folders if entry.is_symlink() else waiting).append(entry.path)
                elif os.path.realpath(entry.path) not in seen:
                    yield entry
            elif _holds(entry.is_file) or entry.is_symlink():  # listed if broken, so that reading it reports the error
                yield entry


def _holds(check):
    """Return `check()`, or False if the operating system raises an error."""
    try:
        return check()
    except OSError:  # a link to itself, or to a place without permission
        return False


def _real_paths(paths):
    by_folder = {}
    for path in paths:
        folder, name = os.path.split(path)
        by_folder.setdefault(folder, []).append(name)
    return {
        os.path.join(real, name)
        for folder, names in by_folder.items()
        for real in [os.path.realpath(folder)]
        for name in names
    }
