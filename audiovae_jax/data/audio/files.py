"""Finding the files under a folder, each once, even with symbolic links."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from audiovae_jax.storage import atomic


def find(root: str | Path, extensions: Collection[str], leave_out: Collection[Path] = ()) -> list[Path]:
    """Return the files under `root`, at any depth, sorted.

    Symbolic links are followed. Each file is listed once, by its own path if that is under `root`, else by a link's.

    Args:
      root: a folder.
      extensions: of the names, in lower case, with the dot.
      leave_out: folders to skip.
    """
    seen = {os.path.realpath(folder) for folder in leave_out}
    extensions = tuple(extensions)
    found, linked_files, waiting = [], [], [os.fspath(root)]
    while waiting:
        linked_folders = []
        for folder in waiting:
            for file in _walk(folder, seen, linked_folders):
                if file.name.lower().endswith(extensions) and not atomic.is_temporary(file.name):
                    (linked_files if file.is_symlink() else found).append(file.path)
        # Links are followed last, so that files under the root are listed by their own paths.
        waiting = sorted(linked_folders)
    taken = _real_paths(found) if linked_files else set()
    for path in sorted(linked_files):
        target = os.path.realpath(path)
        if target not in taken:
            taken.add(target)
            found.append(path)
    return sorted(map(Path, found))


def _walk(folder, seen, linked_folders) -> Iterator[os.DirEntry]:
    """Iterate over the files under `folder`, without following links to folders.

    Folders in `seen` and pipes are skipped. Linked folders are added to `linked_folders`.
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
            try:
                is_folder, is_file = entry.is_dir(), entry.is_file()
            except OSError:  # a link to itself, or to a place without permission
                is_folder = is_file = False
            if is_folder:
                (linked_folders if entry.is_symlink() else waiting).append(entry.path)
            elif is_file or entry.is_symlink():  # a broken link is listed, so that reading it reports the error
                yield entry


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
