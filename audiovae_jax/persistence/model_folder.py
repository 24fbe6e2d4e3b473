"""Atomic writes and consistent reads of a saved model in a folder or a bucket.

A local folder is replaced as a whole. Buckets have no rename, so each write uploads its arrays to a folder with a new
name. It then replaces `model.json`, which gives that name. The arrays of the previous model are removed last.
"""

import contextlib
import json
import re
import secrets
import tempfile
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from audiovae_jax.errors import CheckpointError, as_checkpoint_error
from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.persistence import locate
from audiovae_jax.persistence.locate import ARRAYS, DESCRIPTION, TREES, Kind
from audiovae_jax.storage import array_store, atomic, hub
from audiovae_jax.storage.bucket_path import BucketPath, as_path, local_copy
from audiovae_jax.storage.checksum import json_checksum

PyTree = Any
_Result = TypeVar("_Result")
MODEL, OPTIMIZER, DISCRIMINATOR = TREES
_FORMAT = 1
_KEYS = {
    *("format", "config", "sample_rate", "channels", "hop_length", "latent_statistics", "encoder_frozen"),
    *("parameter_count", "epoch", "global_step", "metadata", "discriminator", "arrays", "checksum"),
}
_ARRAYS_FOLDER = "arrays_folder"  # key of `model.json` in a bucket: name of the folder with the trees
_IS_ARRAYS_FOLDER = re.compile(rf"{ARRAYS}[0-9a-f]{{16}}")
_MAX_RETRY = 30.0  # seconds during which a read is retried while another process replaces the model
_ABANDONED = 86400.0  # seconds after which arrays that no `model.json` names count as an interrupted upload


def write(path: str | Path | BucketPath, description: dict[str, Any], trees: dict[str, PyTree]):
    """Write a saved model to `path` atomically.

    Args:
      path: a folder or its URL. If it exists, it must be a saved model, which is replaced.
      description: entries of `model.json`, without those that follow from the trees.
      trees: trees of arrays, by their names in `TREES`.

    Raises:
      CheckpointError: `model_of` would reject the model, or it cannot be written. The previous model is kept.
    """
    target = require_target(path)
    arrays_folder = f"{ARRAYS}{secrets.token_hex(8)}" if isinstance(target, BucketPath) else None
    with as_checkpoint_error(" was not written: its trees contain other values than arrays", path):
        arrays = {name: array_store.describe(tree) for name, tree in trees.items()}
    description = {"format": _FORMAT, **description, "arrays": arrays}
    try:
        description = json.loads(json.dumps(description, allow_nan=False))  # JSON readers of other languages reject NaN
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f" was not written: epoch, global_step and metadata must be JSON values ({error})", path=path
        ) from error
    with as_checkpoint_error(" was not written: its config is not valid for AudioVAE", path):
        _, different = _compared(description)
    for name, needed, given in different:
        raise CheckpointError(
            f" was not written: {name} is {given} in the variables and {needed} in the model; {_remedy(needed, given)}",
            path=path,
        )
    description["parameter_count"] = count_parameters(trees[MODEL]["params"])
    description["latent_statistics"] = "calibrated" if is_calibrated(trees[MODEL]) else "initial"
    if arrays_folder is not None:
        description[_ARRAYS_FOLDER] = arrays_folder
    description["arrays"] = description.pop("arrays")  # moved to the end, since it is the longest entry
    description["checksum"] = json_checksum(description)
    text = json.dumps(description, indent=2) + "\n"
    try:
        if isinstance(target, BucketPath):
            _upload(target, text, trees, arrays_folder)
        else:
            with atomic.replacing_folder(target) as temporary:
                _write_trees(temporary, trees)
                (temporary / DESCRIPTION).write_text(text)
    except OSError as error:
        raise CheckpointError(f" was not written: {error.strerror or error}", path=path) from error


def read_trees(path: Path | BucketPath, description: dict, names: Collection[str] = TREES) -> dict[str, PyTree]:
    """Read the named trees of a saved model that exist.

    Args:
      path: the saved model.
      description: the result of `read_description`.
      names: names of trees to read.

    Raises:
      CheckpointError: the trees are damaged, or the model was replaced since `description` was read; see `settled`.
    """
    trees = {}
    for name, place in _tree_places(path, description).items():
        if name in names:
            with local_copy(place) as folder:
                trees[name] = array_store.read_tree(folder, description["arrays"][name], place)
    return trees


def settled(path: str | Path | BucketPath, read: Callable[[Path | BucketPath], _Result]) -> _Result:
    """Return `read(path)`, retried if the saved model is replaced during the read.

    Args:
      path: the path of a model.
      read: a function of a `Path` or `BucketPath`. It must fail if it has read parts of different models.

    Raises:
      CheckpointError: `read` failed, and the model was not replaced.
    """
    end = time.monotonic() + _MAX_RETRY
    while True:
        place = locate.opened_path(path)
        before = _identity(place)
        try:
            return read(place)
        except (CheckpointError, OSError) as error:
            if _identity(locate.opened_path(path)) != before and time.monotonic() < end:
                continue
            if isinstance(error, OSError):
                raise CheckpointError(f": {error.strerror or error}", path=path) from error
            if error.path == place and hub.is_hub(path):
                error.path = path  # instead of the copy in the cache
            raise


def model_of(description: dict, path: Path | BucketPath) -> AudioVAE:
    """Return the model of the description that was read from `path`.

    Raises:
      CheckpointError: its config is not valid, or its arrays do not match the model.
    """
    with as_checkpoint_error(": its config is not valid for AudioVAE", path / DESCRIPTION):
        model, different = _compared(description)
    for name, needed, there in different:
        raise CheckpointError(
            f" does not match its config: {name} is {there} there, but must be {needed}", path=path / DESCRIPTION
        )
    return model


def read_description(path: Path | BucketPath) -> dict:
    """Read and verify a saved model's JSON; raises CheckpointError if it is damaged."""
    try:
        text = (path / DESCRIPTION).read_text()
    except OSError as error:
        raise CheckpointError(f" cannot be read: {error.strerror or error}", path=path / DESCRIPTION) from error
    except ValueError as error:
        raise CheckpointError(" is damaged", path=path / DESCRIPTION, detail=array_store.first_line(error)) from error
    return _parsed(text, path)


def is_calibrated(variables: dict) -> bool:
    """Return whether a model's latent statistics differ from their initial values."""
    statistics = variables["latent_statistics"]
    return bool(np.any(statistics["latent_mean"] != 0) or np.any(statistics["latent_std"] != 1))


def require_target(path: str | Path | BucketPath) -> Path | BucketPath:
    """Return `path` as a path object if a saved model can be written there.

    Call this before expensive work.

    Raises:
      CheckpointError: no saved model can be written there.
    """
    try:
        target = as_path(path)
        if not _is_free(target):
            raise CheckpointError(" exists and is not a saved model; give another path", path=path)
        if isinstance(target, BucketPath):
            probe = target / f".{secrets.token_hex(4)}.tmp"
            probe.write_text("")
            probe.unlink(missing_ok=True)
        else:
            atomic.require_writable(target)
    except OSError as error:
        raise CheckpointError(f" cannot be written: {error.strerror or error}; give another path", path=path) from error
    return target


def _is_free(target):
    kind = locate.locate(target).kind
    if kind is Kind.OTHER and isinstance(target, BucketPath):
        return all(_IS_ARRAYS_FOLDER.fullmatch(child.name) for child in target.iterdir())  # interrupted uploads
    return kind in (Kind.NOTHING, Kind.SAVED_MODEL)


def _parsed(text, path):
    where = path / DESCRIPTION
    try:
        description = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(" is damaged", path=where, detail=array_store.first_line(error)) from error
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise CheckpointError(" is not the description of a saved model", path=where)
    if description["format"] != _FORMAT:
        raise CheckpointError(
            f" has format {description['format']}; this version reads format {_FORMAT}, install a newer one", path=path
        )
    missing = _KEYS - description.keys()
    if missing:
        raise CheckpointError(f" is damaged: it lacks {', '.join(sorted(missing))}", path=where)
    arrays, arrays_folder = description["arrays"], description.get(_ARRAYS_FOLDER)
    if (
        not isinstance(arrays, dict)
        or MODEL not in arrays
        or not all(
            isinstance(tree, dict) and all(isinstance(a, str) for a in tree.values()) for tree in arrays.values()
        )
        or not (arrays_folder is None or _IS_ARRAYS_FOLDER.fullmatch(str(arrays_folder)))
    ):
        raise CheckpointError(" is damaged: its arrays are not described", path=where)
    if description["checksum"] != json_checksum(description):
        raise CheckpointError(" does not match its checksum: it is damaged, or was edited", path=where)
    return description


def _compared(description):
    """Return a description's model and mismatches `(array, expected, described)`."""
    model = AudioVAE(**description["config"])
    needed = array_store.describe_shapes(model.shapes())
    described = array_store.shapes_of(description["arrays"][MODEL])
    return model, list(array_store.differences(needed, described))


def _remedy(needed, given):
    dtype, _, shape = needed.partition("[")
    if shape and given.partition("[")[2] == shape:
        return f"convert the variables, as in jax.tree.map(lambda x: x.astype({dtype!r}), variables)"
    return "give the model that the variables belong to, and no other arrays"


def _tree_places(path, description):
    """Return `{name: folder}` of the described trees."""
    arrays_folder = description.get(_ARRAYS_FOLDER)
    folder = path if arrays_folder is None else path / arrays_folder
    return {name: folder / name for name in TREES if name in description["arrays"]}


def _identity(place):
    """Return a value that changes with each saved model at `place`; None without one."""
    file = place / DESCRIPTION
    try:
        if isinstance(place, BucketPath):
            return file.version()
        status = file.stat()
        return status.st_dev, status.st_ino, status.st_mtime_ns
    except OSError:
        return None


def _write_trees(folder, trees):
    for name, tree in trees.items():
        array_store.write_tree(folder / name, tree)


def _upload(target, text, trees, arrays_folder):
    with tempfile.TemporaryDirectory(prefix="audiovae_jax_") as folder:
        _write_trees(Path(folder), trees)
        (target / arrays_folder).upload(Path(folder))
    try:
        replaced = _tree_places(target, read_description(target))
    except CheckpointError:  # no previous model, or a damaged one
        replaced = {}
    (target / DESCRIPTION).write_text(text)
    with contextlib.suppress(OSError):  # the model is written; leftovers are harmless
        for place in replaced.values():
            place.remove_tree()
        _remove_abandoned(target, arrays_folder)


def _remove_abandoned(target, arrays_folder):
    files = target.files()
    now = (target / DESCRIPTION).modified()
    for folder, name in {file.partition("/")[0]: file for file in files}.items():
        others = _IS_ARRAYS_FOLDER.fullmatch(folder) and folder != arrays_folder
        if others and now - (target / name).modified() > _ABANDONED:
            (target / folder).remove_tree()
