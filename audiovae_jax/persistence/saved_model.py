"""`save_model` and `load_model`: a model with all that is needed to use it, and nothing to be remembered.

A saved model is a folder: `model.json`, which a person can read, and Orbax trees of arrays beside it,
`model/` and, if given, `optimizer/` and `discriminator/`. The JSON has a checksum for every array.
`model_folder` has how it is stored.
"""

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from audiovae_jax.checks import whole_number
from audiovae_jax.config import build, resolve
from audiovae_jax.errors import CheckpointError, ConfigError, as_checkpoint_error
from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.persistence import checkpoint, model_folder, places
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.storage.bucket_path import BucketPath, local_copy
from audiovae_jax.torch_io import audio_vae

PyTree = Any


def save_model(
    model: AudioVAE,
    variables: dict,
    path: str | Path | BucketPath,
    *,
    optimizer_state: PyTree = None,
    epoch: int | None = None,
    global_step: int | None = None,
    metadata: dict[str, Any] | None = None,
    discriminator: nn.Module | None = None,
    discriminator_params: PyTree = None,
    sample_rate: int | None = None,
):
    """Write a model to `path`, from which `load_model` makes it again.

    It is put there whole or not at all, and only if `load_model` would take it.

    Args:
      model: its configuration is written too.
      variables: `params` and `latent_statistics`.
      path: a folder to make, or a saved model to replace; or the `s3://` or `gs://` URL of one.
      optimizer_state: an optax state, for `load_training_state`.
      epoch, global_step: where training stood.
      metadata: anything that JSON can hold.
      discriminator: a linen module, written as its dotted name and arguments.
      discriminator_params: its parameters.
      sample_rate: in Hz, of the audio that the model is for.

    Raises:
      CheckpointError: `path` holds something else than a saved model, the variables are not of the model, or
        something given cannot be written. What was at `path` is kept.
    """
    if (discriminator is None) != (discriminator_params is None):
        raise CheckpointError("give discriminator and discriminator_params together")
    trees = {model_folder.OPTIMIZER: optimizer_state, model_folder.DISCRIMINATOR: discriminator_params}
    loaded = LoadedModel(
        model,
        variables,
        "saved model",
        sample_rate=sample_rate,
        epoch=epoch,
        global_step=global_step,
        metadata=metadata or {},
        discriminator=None if discriminator is None else _describe_module(discriminator),
        training={name: tree for name, tree in trees.items() if tree is not None},
    )
    save_loaded(loaded, path)


def load_model(
    path: str | Path, *, step: int | None = None, device: jax.Device | None = None, strict: bool = True
) -> tuple[AudioVAE, dict]:
    """A trained model, with no architecture given, from whatever holds one.

    Args:
      path: a saved model, a training workdir (or its `checkpoints`, or one of them), or a `.pt`,
        `.ckpt` or `.safetensors` file of the PyTorch system; or the `s3://` or `gs://` URL of one.
      step: of a workdir's checkpoint; by default the best by validation loss.
      device: where to put the arrays; by default JAX's first.
      strict: for files of the PyTorch system, see `torch_io.import_audio_vae`.

    Returns:
      `(model, variables)`.

    Raises:
      CheckpointError: there is no model there, it is damaged, or it has no checkpoint at `step`.
    """
    loaded = open_model(path, step=step, strict=strict)
    for note in loaded.notes:
        warnings.warn(f"{path}: {note}", UserWarning, stacklevel=2)
    return loaded.model, jax.device_put(loaded.variables, device or jax.local_devices()[0])


@dataclasses.dataclass
class LoadedModel:
    """A model, and what its file says of it.

    Attributes:
      model, variables: the model; arrays are numpy's or jax's.
      kind: "saved model", "checkpoint" or "torch file".
      sample_rate: in Hz, None where it is not known.
      epoch, global_step: where training stood, None where that is not known.
      metadata: what was saved with it; a checkpoint's validation metrics.
      notes: what was inferred, assumed or left out.
      discriminator: of a saved model, its dotted name and arguments.
      training: of a saved model, the arrays of its optimizer and discriminator, where they were asked for.
    """

    model: AudioVAE
    variables: dict
    kind: str
    sample_rate: int | None = None
    epoch: int | None = None
    global_step: int | None = None
    metadata: dict = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    discriminator: dict | None = None
    training: dict[str, PyTree] = dataclasses.field(default_factory=dict)


def save_loaded(loaded: LoadedModel, path: str | Path | BucketPath):
    """`save_model` of a model as it was opened, with all that was read of it."""
    for name in sorted({*checkpoint.VARIABLES}.symmetric_difference(loaded.variables)):
        have, remedy = ("no", "give all that model.init returns") if name in checkpoint.VARIABLES else ("a", "drop it")
        raise CheckpointError(f"{path} was not written: the variables have {have} collection {name!r}; {remedy}")
    counts = {
        "sample_rate": (loaded.sample_rate, 1),
        "epoch": (loaded.epoch, 0),
        "global_step": (loaded.global_step, 0),
    }
    description = {
        "config": _arguments(loaded.model),
        **{
            name: None if value is None else whole_number(value, name, CheckpointError, least=least)
            for name, (value, least) in counts.items()
        },
        "channels": loaded.model.in_channels,
        "hop_length": loaded.model.hop_length,
        "encoder_frozen": loaded.model.encoder_frozen,
        "metadata": loaded.metadata,
        "discriminator": loaded.discriminator,
    }
    model_folder.write(path, description, {model_folder.MODEL: dict(loaded.variables), **loaded.training})


def open_model(
    path: str | Path, *, step: int | None = None, strict: bool = True, training: bool = False
) -> LoadedModel:
    """`load_model` with all that the file says of the model.

    Args:
      path, step, strict: see `load_model`.
      training: whether the arrays that a saved model has for training are wanted too.
    """
    return model_folder.settled(path, lambda place: _open(place, step, strict, training))


def _open(path, step, strict, training):
    is_bucket = isinstance(path, BucketPath)
    if not (path.exists() if is_bucket else os.path.exists(path)):  # Path.exists raises for names that cannot be
        raise CheckpointError(f"{path}: there is no such file or folder")
    is_saved = (path / model_folder.DESCRIPTION).is_file()
    if not is_saved and path.is_dir():
        return _open_checkpoint(path, step)
    if step is not None:
        raise CheckpointError(f"{path} is one model, so there is no step={step} to choose; give a training workdir")
    if is_saved:
        return _open_saved(path, training)
    with at_hand(path) as local:
        return _open_torch(local, strict)


def load_from_lightning_checkpoint(path: str | Path) -> tuple[AudioVAE, dict]:
    """`(model, variables)` of a Lightning checkpoint of the PyTorch system; `load_model` takes it as well."""
    return load_model(path)


@contextlib.contextmanager
def at_hand(path: Path | BucketPath) -> Iterator[Path]:
    """A copy on this machine of a file that may be in a bucket.

    Raises:
      CheckpointError: it cannot be fetched; what is raised inside names the URL.
    """
    local = path
    try:
        with local_copy(path) as local:
            yield local
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(local), str(path))) from error


def _open_saved(path, training):
    description = model_folder.read_description(path)
    model = model_folder.model_of(description, str(path / model_folder.DESCRIPTION))
    names = model_folder.TREES if training else (model_folder.MODEL,)
    trees = model_folder.read_trees(path, description, names)
    variables = trees.pop(model_folder.MODEL)
    fields = ("sample_rate", "epoch", "global_step", "metadata", "discriminator")
    return LoadedModel(model, variables, "saved model", training=trees, **{name: description[name] for name in fields})


def _open_checkpoint(path, step):
    folder, named = places.locate(path)
    checkpoints = Checkpoints(folder, read_only=True)
    chosen = step if step is not None else named
    if chosen is not None and chosen not in checkpoints.steps():
        raise CheckpointError(
            f"{folder} has no checkpoint {chosen}; it has {', '.join(map(str, checkpoints.steps())) or 'none'}"
        )
    passed_over = []
    for candidate in checkpoints.best_first() if chosen is None else [chosen]:
        try:
            loaded = _open_step(checkpoints, folder, candidate)
        except CheckpointError as error:
            passed_over.append(str(error))
            continue
        loaded.notes += [f"passed over {reason}; checkpoint {candidate} is used" for reason in passed_over]
        return loaded
    raise CheckpointError("\n".join(passed_over) or f"{folder} holds no finished checkpoint")


def _open_step(checkpoints, folder, step):
    variables = checkpoints.parts(step, checkpoint.VARIABLES)
    try:
        with as_checkpoint_error(f"{folder / str(step)}: its config makes no model"):
            config = ml_collections.ConfigDict(checkpoints.config(step), convert_dict=True)
            model, sample_rate = build.build_model(config), config.data.sample_rate
    except ConfigError as error:
        raise CheckpointError(f"{folder / str(step)}: {error}") from error
    return LoadedModel(
        model,
        variables,
        "checkpoint",
        sample_rate=sample_rate,
        global_step=step,
        metadata=checkpoints.metrics(step),
    )


def _open_torch(path, strict):
    found = audio_vae.read_audio_vae(path, strict=strict)
    return LoadedModel(
        found.model,
        found.variables,
        "torch file",
        sample_rate=found.sample_rate,
        epoch=found.epoch,
        global_step=found.global_step,
        metadata=found.metadata,
        notes=found.notes,
    )


def _describe_module(module):
    return {resolve.TARGET: resolve.dotted_name(type(module)), **_arguments(module)}


def _arguments(module):
    """The arguments that make a linen module again, as JSON can hold them."""
    fields = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]  # linen's own
    arguments = {name: getattr(module, name) for name in fields}
    if "dtype" in arguments:
        arguments["dtype"] = str(np.dtype(arguments["dtype"]))
    return arguments
