"""`save_model` and `load_model`: a model with everything needed to use it.

A saved model is a folder with the readable description `model.json` and Orbax trees of arrays. The trees are `model/`
and, if given, `optimizer/` and `discriminator/`. The JSON has a checksum for every array. See `model_folder` for the
storage format.
"""

import contextlib
import dataclasses
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from audiovae_jax.config import build, resolve
from audiovae_jax.errors import CheckpointError, ConfigError, as_checkpoint_error, whole_number
from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.persistence import checkpoint, model_folder
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.persistence.locate import Kind, locate_model, opened_path
from audiovae_jax.storage.bucket_path import BucketPath, local_copy
from audiovae_jax.torch_io import audio_vae, source

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
    """Write a model to `path`, for `load_model`.

    The write is atomic. Models that `load_model` would reject are not written.

    Args:
      model: the module; its configuration is saved with it.
      variables: `params` and `latent_statistics`.
      path: a folder to create or a saved model to replace, or its `s3://` or `gs://` URL.
      optimizer_state: an optax state, for `load_training_state`.
      epoch, global_step: the epoch and step of training.
      metadata: JSON values.
      discriminator: a linen module, saved as its dotted name and arguments.
      discriminator_params: the discriminator's parameters.
      sample_rate: sample rate of the model's audio in Hz.

    Raises:
      CheckpointError: `path` exists and is not a saved model, the variables do not match the model, or an argument
        cannot be written. A previous model at `path` is kept.
    """
    if (discriminator is None) != (discriminator_params is None):
        raise CheckpointError("give discriminator and discriminator_params together")
    trees = {model_folder.OPTIMIZER: optimizer_state, model_folder.DISCRIMINATOR: discriminator_params}
    loaded = LoadedModel(
        model,
        variables,
        Kind.SAVED_MODEL,
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
    """Load a trained model; its architecture is read from the file.

    Args:
      path: a saved model, a training workdir, its `checkpoints` folder or one checkpoint in it; a `.pt`, `.pth`,
        `.ckpt` or `.safetensors` file of the PyTorch system or another project; a folder of diffusers; the `s3://`
        or `gs://` URL of one of these; or a model on the hub, `hf://owner/name[/folder][@revision]`.
      step: the checkpoint of a workdir; by default the best by validation loss.
      device: device for the arrays; by default JAX's first.
      strict: for files of the PyTorch system, see `torch_io.import_audio_vae`.

    Returns:
      `(model, variables)`.

    Raises:
      CheckpointError: there is no model at `path`, it is damaged, or it has no checkpoint at `step`.
    """
    loaded = open_model(path, step=step, strict=strict)
    for note in loaded.notes:
        warnings.warn(f"{path}: {note}", UserWarning, stacklevel=2)
    return loaded.model, jax.device_put(loaded.variables, device or jax.local_devices()[0])


@dataclasses.dataclass
class LoadedModel:
    """A model with the information in its file.

    Attributes:
      model, variables: the model; arrays are numpy's or JAX's.
      kind: `SAVED_MODEL`, `CHECKPOINT` (of a workdir, too), `TORCH_FILE` or `TORCH_FOLDER`.
      sample_rate: in Hz; None if unknown.
      epoch, global_step: the epoch and step of training; None if unknown.
      metadata: values saved with the model; for a checkpoint, its validation metrics.
      notes: what was inferred, assumed or left out.
      discriminator: dotted name and arguments of a saved model's discriminator.
      training: arrays of a saved model's optimizer and discriminator, if requested.
      averaged: whether the parameters of a checkpoint are averages of the trained ones.
    """

    model: AudioVAE
    variables: dict
    kind: Kind
    sample_rate: int | None = None
    epoch: int | None = None
    global_step: int | None = None
    metadata: dict = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)
    discriminator: dict | None = None
    training: dict[str, PyTree] = dataclasses.field(default_factory=dict)
    averaged: bool = False


def save_loaded(loaded: LoadedModel, path: str | Path | BucketPath):
    """Write a `LoadedModel` with everything that was read with it; see `save_model`."""
    for name in sorted({*checkpoint.VARIABLES}.symmetric_difference(loaded.variables)):
        have, remedy = ("no", "give those of model.init") if name in checkpoint.VARIABLES else ("a", "drop it")
        raise CheckpointError(f" was not written: the variables have {have} collection {name!r}; {remedy}", path=path)
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
    """Load a model like `load_model`, with all information in its file.

    Args:
      path, step, strict: see `load_model`.
      training: also read the arrays of a saved model's optimizer and discriminator.
    """
    return model_folder.settled(path, lambda path: _open(path, step, strict, training))


def _open(path, step, strict, training):
    place = locate_model(path)
    if place.checkpoints is not None:
        return _open_checkpoint(place.checkpoints, place.step if step is None else step)
    if step is not None:
        raise CheckpointError(
            f" is a single model without steps, so step={step} cannot be used; give a training workdir", path=path
        )
    if place.kind is Kind.SAVED_MODEL:
        return _open_saved(place.path, training)
    with at_hand(path) as local:
        return _open_torch(local, place.kind, strict)


def load_from_lightning_checkpoint(path: str | Path) -> tuple[AudioVAE, dict]:
    """Return `load_model(path)`, for a Lightning checkpoint of the PyTorch system."""
    return load_model(path)


@contextlib.contextmanager
def at_hand(path: str | Path | BucketPath) -> Iterator[Path]:
    """A context with a local copy of a torch file or folder.

    The original may be in a bucket or on the hub.

    Raises:
      CheckpointError: the file cannot be fetched. Errors raised inside the context name `path`.
    """
    local = None
    try:
        opened = opened_path(path)
        files = source.files_of(opened) if isinstance(opened, BucketPath) else None
        with local_copy(opened, files) as local:
            yield local
    except OSError as error:
        raise CheckpointError(f": {error.strerror or error}", path=path) from error
    except CheckpointError as error:
        if error.path == local:
            error.path = path
        raise


def _open_saved(path, training):
    description = model_folder.read_description(path)
    model = model_folder.model_of(description, path)
    names = model_folder.TREES if training else (model_folder.MODEL,)
    trees = model_folder.read_trees(path, description, names)
    variables = trees.pop(model_folder.MODEL)
    fields = ("sample_rate", "epoch", "global_step", "metadata", "discriminator")
    return LoadedModel(
        model, variables, Kind.SAVED_MODEL, training=trees, **{name: description[name] for name in fields}
    )


def _open_checkpoint(folder, step):
    """Open the checkpoint at `step`, or the best intact one."""
    checkpoints = Checkpoints(folder, read_only=True)
    if step is not None:
        if step not in checkpoints.steps():
            there = ", ".join(map(str, checkpoints.steps())) or "none"
            raise CheckpointError(f" has no checkpoint {step}; it has {there}", path=folder)
        return _open_step(checkpoints, folder, step)
    passed_over = []
    for candidate in checkpoints.best_first():
        try:
            loaded = _open_step(checkpoints, folder, candidate)
        except CheckpointError as error:
            passed_over.append(error)
            continue
        loaded.notes += [f"skipped a checkpoint: {reason}; checkpoint {candidate} is used" for reason in passed_over]
        return loaded
    reasons = "\n".join(map(str, passed_over))
    raise CheckpointError(" contains no intact checkpoint", path=folder, detail=reasons or None)


def _open_step(checkpoints, folder, step):
    variables = checkpoints.variables(step)
    try:
        with as_checkpoint_error(": its config does not describe a model", folder / str(step)):
            config = ml_collections.ConfigDict(checkpoints.config(step), convert_dict=True)
            model, sample_rate = build.build_model(config), config.data.sample_rate
    except ConfigError as error:
        raise CheckpointError(f": {error}", path=folder / str(step)) from error
    return LoadedModel(
        model,
        variables,
        Kind.CHECKPOINT,
        sample_rate=sample_rate,
        global_step=step,
        metadata=checkpoints.metrics(step),
        averaged=checkpoints.has_average(step),
    )


def _open_torch(path, kind, strict):
    found = audio_vae.read_audio_vae(path, strict=strict)
    return LoadedModel(
        found.model,
        found.variables,
        kind,
        sample_rate=found.sample_rate,
        epoch=found.epoch,
        global_step=found.global_step,
        metadata=found.metadata,
        notes=found.notes,
    )


def _describe_module(module):
    return {resolve.TARGET: resolve.dotted_name(type(module)), **_arguments(module)}


def _arguments(module):
    """Return the constructor arguments of a linen module as JSON values."""
    fields = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]  # added by linen
    arguments = {name: getattr(module, name) for name in fields}
    if "dtype" in arguments:
        arguments["dtype"] = str(np.dtype(arguments["dtype"]))
    return arguments
