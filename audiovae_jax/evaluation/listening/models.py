"""The models that a page offers, found under a path and selected by name."""

import collections
import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from audiovae_jax.errors import CheckpointError, DataError, naming, printable
from audiovae_jax.inference.codec import Codec
from audiovae_jax.persistence.locate import CHECKPOINTS, DESCRIPTION, FOLDERS, STATE, Kind, Place, locate, locate_model
from audiovae_jax.storage import atomic, hub

_TORCH_FILES = (".pt", ".ckpt", ".safetensors")
_MAX_LOADED = 2  # maximum number of models in memory


def find(path: str) -> dict[str, str]:
    """Find the models at a path.

    Args:
      path: a model (a saved model, a workdir, one of its checkpoints, a torch file, or a URL of one), or a folder that
        contains models. Links that lead out of the folder and unreadable files are skipped.

    Returns:
      `{name: path}`, sorted by name. In a folder the names are relative paths.

    Raises:
      CheckpointError: there is no model.
    """
    place = locate(path)
    given = place.path
    if place.kind is Kind.OTHER and isinstance(given, Path) and given.is_dir():
        found = {printable(os.path.relpath(model, given)): str(model) for model in _under(given)}
        if not found:
            raise CheckpointError(
                ": there is no model in this folder (no saved model, workdir or torch file)", path=path
            )
        return dict(sorted(found.items()))
    locate_model(path)
    if hub.is_hub(path):
        return {hub.without_revision(path).rpartition("/")[2]: path}
    return {printable(given.resolve().name) if isinstance(given, Path) else given.name: str(path)}


class Models:
    """Codecs by name. The most recently used ones are kept in memory.

    Args:
      path: see `find`, which is called again by `names`.
      load: function that loads the codec at a path.
    """

    def __init__(self, path: str, load: Callable[[str], Codec]):
        self._path, self._load = path, load
        self._found = find(path)
        self._codecs: collections.OrderedDict[tuple, Codec] = collections.OrderedDict()
        self._lock = threading.Lock()

    def names(self) -> list[str]:
        """Return the models' names.

        If there are no models now, the last known names are returned.
        """
        with contextlib.suppress(CheckpointError):
            self._found = find(self._path)
        return list(self._found)

    def codec(self, name: str) -> Codec:
        """Return the codec of a listed model. Paths are not accepted.

        Raises:
          DataError: the name is not in the list.
          CheckpointError: the model cannot be loaded.
        """
        path = self._found.get(name) if isinstance(name, str) else None
        if path is None:
            raise DataError(f'there is no model {str(name)[:200]!r} here; select one under "Model"')
        with self._lock:  # so that concurrent requests load a model once
            key = (name, _changed(path))
            if key not in self._codecs:
                while len(self._codecs) >= _MAX_LOADED:
                    self._codecs.popitem(last=False)
                try:
                    self._codecs[key] = self._load(path)
                except CheckpointError as error:
                    # Visitors do not see folders, nor the texts of other libraries, which may name some.
                    with naming(name):
                        raise CheckpointError(error.problem, path=_shown(error.path, path, name)) from error
            self._codecs.move_to_end(key)
            return self._codecs[key]


def _shown(part, path, name):
    """Return a path as visitors may see it: below the model's name."""
    if part is None:
        return None
    if not Path(part).is_relative_to(path):
        return name
    return printable(Path(name, Path(part).relative_to(path)))


def _under(folder: Path) -> Iterator[Path]:
    """Yield the models in a folder at any depth, without searching inside models."""
    root = os.path.realpath(folder)
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            found = _located(Path(place, name))
            if found.kind in FOLDERS:
                folders.remove(name)
                if _is_inside(found, root):
                    yield found.path
        for name in files:
            path = Path(place, name)
            is_named_so = name.lower().endswith(_TORCH_FILES) and not atomic.is_temporary(name)
            if is_named_so and _lies_in(path, root) and _located(path).kind is Kind.TORCH_FILE:
                yield path


def _located(path):
    """Return what lies at a path; an unreadable path counts as no model."""
    try:
        return locate(path)
    except CheckpointError:
        return Place(path, Kind.OTHER)


def _is_inside(place, root):
    """Return whether a model lies in `root`, with all parts of it that may be links."""
    folder, parts = place.checkpoints, [place.path]
    if place.kind is Kind.SAVED_MODEL:
        parts.append(place.path / DESCRIPTION)
    elif place.kind is Kind.CHECKPOINT:
        parts.append(place.path / STATE)
    elif place.kind is Kind.TORCH_FOLDER:
        parts += [path for path in place.path.rglob("*") if path.is_file()]
    elif place.kind is Kind.WORKDIR:
        parts += [folder, *(step / STATE for step in folder.iterdir() if step.name.isdigit())]
    return all(_lies_in(part, root) for part in parts)


def _lies_in(path, root):
    return os.path.realpath(path).startswith(os.path.join(root, ""))


def _changed(path):
    """Return the modification time of a model, or of its checkpoints for a workdir."""
    for place in (os.path.join(path, CHECKPOINTS), os.path.join(path, DESCRIPTION), path):
        try:
            return os.stat(place).st_mtime_ns
        except OSError:
            continue
    return None
