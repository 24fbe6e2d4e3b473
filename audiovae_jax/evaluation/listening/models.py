"""The models that a page offers, found under a path and selected by name."""

import collections
import contextlib
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import safetensors

from audiovae_jax.errors import CheckpointError, DataError, printable
from audiovae_jax.inference.codec import Codec
from audiovae_jax.inference.latents import METADATA_KEY
from audiovae_jax.persistence import locate
from audiovae_jax.persistence.model_folder import DESCRIPTION
from audiovae_jax.storage import atomic
from audiovae_jax.storage.bucket_path import BucketPath

_TORCH_FILES = (".pt", ".ckpt", ".safetensors")
_MOST_LOADED = 2  # maximum number of models in memory
_CHECKPOINTS = "checkpoints"


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
    given = locate.opened_path(path)
    if not os.path.exists(given) if isinstance(given, Path) else not given.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    if isinstance(given, BucketPath) or not given.is_dir() or _is_model(given):
        return {printable(given.resolve().name) if isinstance(given, Path) else given.name: str(path)}
    found = {printable(os.path.relpath(model, given)): str(model) for model in _under(given)}
    if not found:
        kinds = "saved model, workdir or torch file"
        raise CheckpointError(f"{path}: there is no model in this folder (no {kinds})")
    return dict(sorted(found.items()))


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
            raise DataError(f'there is no model {str(name)[:200]!r} here; choose one under "Model"')
        with self._lock:  # so that concurrent requests load a model once
            key = (name, _changed(path))
            if key not in self._codecs:
                while len(self._codecs) >= _MOST_LOADED:
                    self._codecs.popitem(last=False)
                try:
                    self._codecs[key] = self._load(path)
                except CheckpointError as error:  # do not reveal paths to visitors
                    text = str(error).replace(path, name).replace(printable(path), name)
                    raise CheckpointError(text) from error
            self._codecs.move_to_end(key)
            return self._codecs[key]


def _under(folder: Path) -> Iterator[Path]:
    """Yield the models in a folder at any depth, without searching inside models."""
    root = os.path.realpath(folder)
    for place, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in list(folders):
            path = Path(place, name)
            if _is_model(path):
                folders.remove(name)
                if all(_lies_in(part, root) for part in (path, *_parts(path))):
                    yield path
        for name in files:
            path = Path(place, name)
            is_torch_file = name.lower().endswith(_TORCH_FILES) and not atomic.is_temporary(name)
            if is_torch_file and _lies_in(path, root) and _is_regular(path) and not _holds_latents(path):
                yield path


def _is_model(folder):
    try:
        if (folder / DESCRIPTION).is_file():
            return True
        if folder.name.isdigit() and (folder / "state").is_dir():
            return True
        return any((step / "state").is_dir() for step in _steps(folder))
    except OSError:  # not readable
        return False


def _steps(folder):
    for steps in (folder / _CHECKPOINTS, folder):
        if steps.is_dir():
            yield from (child for child in steps.iterdir() if child.name.isdigit())


def _parts(model):
    """Return the paths in a model's folder that may be links."""
    return model / DESCRIPTION, model / _CHECKPOINTS, model / "state", *(step / "state" for step in _steps(model))


def _is_regular(path):
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # opening a pipe would block
    except OSError:
        return False


def _lies_in(path, root):
    return os.path.realpath(path).startswith(os.path.join(root, ""))


def _holds_latents(path):
    if path.suffix.lower() != ".safetensors":
        return False
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return METADATA_KEY in (file.metadata() or {})
    except (OSError, ValueError, safetensors.SafetensorError):  # ValueError: a name that is not UTF-8
        return False  # loading it will report the reason


def _changed(path):
    """Return the modification time of a model, or of its checkpoints for a workdir."""
    for place in (os.path.join(path, _CHECKPOINTS), os.path.join(path, DESCRIPTION), path):
        try:
            return os.stat(place).st_mtime_ns
        except OSError:
            continue
    return None
