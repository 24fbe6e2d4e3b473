"""`locate`: the kind of model at a path or URL."""

import dataclasses
import enum
import json
import os
import stat
from pathlib import Path

from audiovae_jax.errors import CheckpointError
from audiovae_jax.storage import atomic, hub
from audiovae_jax.storage.bucket_path import BucketPath, as_path
from audiovae_jax.torch_io import source

DESCRIPTION = "model.json"  # of a saved model
TREES = ("model", "optimizer", "discriminator")  # folders of arrays in a saved model
ARRAYS = "arrays-"  # prefix of the name of the folder with the trees, in a bucket
CHECKPOINTS = "checkpoints"  # folder in a workdir
STATE = "state"  # folder in a checkpoint
LATENTS_KEY = "audiovae_latents"  # key in a safetensors file's metadata that marks a file of latents

_LARGEST_HEADER = 100_000_000  # bytes, the limit of safetensors


class Kind(enum.Enum):
    """Kinds of paths."""

    NOTHING = "nothing"
    WORKDIR = "workdir"  # or its folder of checkpoints
    CHECKPOINT = "checkpoint"  # the folder of one step
    SAVED_MODEL = "saved model"
    LATENTS = "latents"  # a safetensors file of them
    TORCH_FILE = "torch file"  # any other file; only reading it shows whether there is a model in it
    TORCH_FOLDER = "torch folder"  # weights of another project with their config, such as a folder of diffusers
    OTHER = "other"  # a folder without a model, a pipe or a device


OURS = (Kind.WORKDIR, Kind.CHECKPOINT, Kind.SAVED_MODEL)  # folders with a model of this library
FOLDERS = (*OURS, Kind.TORCH_FOLDER)  # folders with any model
TORCH = (Kind.TORCH_FILE, Kind.TORCH_FOLDER)  # what `torch_io` reads


@dataclasses.dataclass(frozen=True)
class Place:
    """A path and its kind.

    Attributes:
      path: to read from.
      kind: kind of the path.
      checkpoints: folder of the checkpoints of a `WORKDIR` or `CHECKPOINT`; else None.
      step: step of a `CHECKPOINT`; else None.
    """

    path: Path | BucketPath
    kind: Kind
    checkpoints: Path | BucketPath | None = None
    step: int | None = None


def locate(path: str | Path | BucketPath) -> Place:
    """Return the place, with its kind, of a user's path or URL.

    If a folder is just being replaced, this waits for its replacement.

    Raises:
      CheckpointError: the path cannot be read, or the URL cannot be reached.
    """
    opened = opened_path(path)
    try:
        return _classified(opened)
    except OSError as error:
        raise CheckpointError(f": {error.strerror or error}", path=path) from error


def locate_model(path: str | Path | BucketPath) -> Place:
    """Return `locate(path)` if there may be a model.

    Raises:
      CheckpointError: there is nothing at `path`, or no model.
    """
    place = locate(path)
    if place.kind is Kind.NOTHING:
        raise CheckpointError(": there is no such file or folder", path=path)
    if place.kind is Kind.LATENTS:
        raise CheckpointError(" contains latents; give the model that encoded them", path=path)
    if place.kind is Kind.OTHER:
        if (place.path / source.DIFFUSERS_PIPELINE).is_file():
            raise CheckpointError(" is a pipeline of diffusers without its autoencoder, the folder vae", path=path)
        raise CheckpointError(
            " contains no checkpoint; give a training workdir, one of its checkpoints/<step>, or a saved model",
            path=path,
        )
    return place


def opened_path(path: str | Path | BucketPath) -> Path | BucketPath:
    """Return a user's path as a `Path` or `BucketPath`.

    If the path is just being replaced, this waits for the replacement. A model on the hub is downloaded to
    huggingface_hub's cache.

    Raises:
      CheckpointError: the path is a URL that cannot be reached.
    """
    try:
        if hub.is_hub(path):
            return hub.fetch(path, _files_on_hub)
        opened = as_path(path)
        if isinstance(opened, BucketPath):
            opened.exists()
        else:
            atomic.await_swap(opened)
    except OSError as error:
        raise CheckpointError(f": {error.strerror or error}", path=path) from error
    return opened


def pinned(path: str | Path | BucketPath) -> str | Path | BucketPath:
    """Return a path that stays valid.

    For a model on the hub, this is its URL with the commit. Other paths are returned unchanged.

    Raises:
      CheckpointError: the hub cannot be reached, or has no such repository or revision.
    """
    try:
        return hub.pinned(path) if hub.is_hub(path) else path
    except OSError as error:
        raise CheckpointError(f": {error.strerror or error}", path=path) from error


def _files_on_hub(place):
    """Return the files of a repository that reading the model at `place` needs."""
    if (place / DESCRIPTION).is_file():
        names = [name for name in place.files() if name.startswith((*(f"{tree}/" for tree in TREES), ARRAYS))]
        return [place / name for name in (DESCRIPTION, *names)]
    if place.is_file() or source.is_folder_of_another_project(place):
        return source.files_of(place)
    raise CheckpointError(
        f" contains no model, but {hub.listed(place)}; give the folder of a saved model or of diffusers, or a file "
        "with weights",
        path=place,
    )


def _classified(path):
    # Path.exists raises for invalid names.
    if not (path.exists() if isinstance(path, BucketPath) else os.path.exists(path)):
        return Place(path, Kind.NOTHING)
    if (path / DESCRIPTION).is_file():
        return Place(path, Kind.SAVED_MODEL)
    if not path.is_dir():
        return Place(path, _kind_of_file(path))
    if path.name.isdigit() and (path / STATE).is_dir():
        return Place(path, Kind.CHECKPOINT, path.parent, int(path.name))
    for folder in (path / CHECKPOINTS, path):
        if folder.is_dir() and any(_is_checkpoint(child) for child in folder.iterdir()):
            return Place(path, Kind.WORKDIR, folder)
    if source.is_folder_of_another_project(path):
        return Place(path, Kind.TORCH_FOLDER)
    return Place(path, Kind.OTHER)


def _is_checkpoint(path):
    """Return whether a folder is a step's. In `checkpoints/`, it may be damaged."""
    return path.name.isdigit() and (path.parent.name == CHECKPOINTS or (path / STATE).is_dir())


def _kind_of_file(path):
    if isinstance(path, Path) and not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would block
        return Kind.OTHER
    return Kind.LATENTS if path.suffix.lower() == ".safetensors" and _holds_latents(path) else Kind.TORCH_FILE


def _holds_latents(path):
    try:
        size = int.from_bytes(_start(path, 8), "little")
        header = json.loads(_start(path, 8 + size)[8:]) if size <= _LARGEST_HEADER else {}
        return LATENTS_KEY in header["__metadata__"]
    except (ValueError, LookupError, TypeError, RecursionError):
        return False  # loading it reports the reason


def _start(path, size):
    if isinstance(path, BucketPath):
        return path.read_bytes(size)
    with path.open("rb") as file:
        return file.read(size)
