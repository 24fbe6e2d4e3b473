"""`save_model` and `load_model`: a model with all that is needed to use it, and nothing to be remembered.

A saved model is a folder: `model.json`, which a person can read, and Orbax trees of arrays beside it,
`model/` and, if given, `optimizer/` and `discriminator/`. The JSON has a checksum for every array.
"""

import dataclasses
import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import ml_collections
import numpy as np

from audiovae_jax import array_store, build, checkpoint, resolve
from audiovae_jax.checkpoint import Checkpoints
from audiovae_jax.errors import CheckpointError, ConfigError
from audiovae_jax.model import AudioVAE
from audiovae_jax.state import count_parameters
from audiovae_jax.torch_io import audio_vae

PyTree = Any
DESCRIPTION = "model.json"
_FORMAT = 1
_KEYS = {
    *("format", "config", "sample_rate", "channels", "hop_length", "latent_statistics", "encoder_frozen"),
    *("parameter_count", "epoch", "global_step", "metadata", "discriminator", "arrays"),
}
_ARRAYS = ("model", "optimizer", "discriminator")


def save_model(
    model: AudioVAE,
    variables: dict,
    path: str | Path,
    *,
    optimizer_state: PyTree = None,
    epoch: int | None = None,
    global_step: int | None = None,
    metadata: dict[str, Any] | None = None,
    discriminator: nn.Module | None = None,
    discriminator_params: PyTree = None,
    sample_rate: int | None = None,
):
    """Write a model to the folder `path`, from which `load_model` makes it again.

    The folder is written beside its place and then put there, so that what was at `path` before, if
    it was a saved model, is there whole until then.

    Args:
      model: its configuration is written too.
      variables: `params` and `latent_statistics`.
      path: a folder to make, or a saved model to replace.
      optimizer_state: an optax state, for `load_training_state`.
      epoch, global_step: where training stood.
      metadata: anything that JSON can hold.
      discriminator: a linen module, written as its dotted name and arguments.
      discriminator_params: its parameters.
      sample_rate: in Hz, of the audio that the model is for.

    Raises:
      CheckpointError: `path` holds something else than a saved model, or something given cannot be written.
    """
    path = Path(path)
    if path.exists() and not (path / DESCRIPTION).is_file():
        raise CheckpointError(f"{path} exists and is not a saved model; give another path")
    if (discriminator is None) != (discriminator_params is None):
        raise CheckpointError("give discriminator and discriminator_params together")
    trees = {"model": {name: variables[name] for name in checkpoint.VARIABLES}}
    if optimizer_state is not None:
        trees["optimizer"] = optimizer_state
    if discriminator is not None:
        trees["discriminator"] = discriminator_params
    statistics = variables["latent_statistics"]
    calibrated = bool(np.any(statistics["latent_mean"] != 0) or np.any(statistics["latent_std"] != 1))
    description = {
        "format": _FORMAT,
        "config": _model_config(model),
        "sample_rate": sample_rate,
        "channels": model.in_channels,
        "hop_length": model.hop_length,
        "latent_statistics": "calibrated" if calibrated else "initial",
        "encoder_frozen": model.encoder_frozen,
        "parameter_count": count_parameters(variables["params"]),
        "epoch": epoch,
        "global_step": global_step,
        "metadata": metadata or {},
        "discriminator": None if discriminator is None else _describe_module(discriminator),
        "arrays": {name: array_store.describe(tree) for name, tree in trees.items()},
    }
    try:
        text = json.dumps(description, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path} was not written: metadata must be what JSON can hold ({error})") from error
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for name, tree in trees.items():
            array_store.write_tree(temporary / name, tree)
        (temporary / DESCRIPTION).write_text(text)
        _put(temporary, path)
    except OSError as error:
        raise CheckpointError(f"{path} was not written: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_model(
    path: str | Path, *, step: int | None = None, device: jax.Device | None = None, strict: bool = True
) -> tuple[AudioVAE, dict]:
    """A trained model, with no architecture given, from whatever holds one.

    Args:
      path: a saved model, a training workdir (or its `checkpoints`, or one of them), or a `.pt`,
        `.ckpt` or `.safetensors` file of the PyTorch system.
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
    """

    model: AudioVAE
    variables: dict
    kind: str
    sample_rate: int | None = None
    epoch: int | None = None
    global_step: int | None = None
    metadata: dict = dataclasses.field(default_factory=dict)
    notes: list[str] = dataclasses.field(default_factory=list)


def open_model(path: str | Path, *, step: int | None = None, strict: bool = True) -> LoadedModel:
    """`load_model` with all that the file says of the model; the arguments are the same."""
    path = Path(path)
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    if not path.is_dir() or (path / DESCRIPTION).is_file():
        if step is not None:
            raise CheckpointError(f"{path} is one model, so there is no step={step} to choose; give a training workdir")
        return _open_saved(path) if path.is_dir() else _open_torch(path, strict)
    return _open_checkpoint(path, step)


def _open_saved(path):
    description = _read_description(path)
    model = _model(description["config"], str(path / DESCRIPTION))
    arrays = array_store.read_tree(path / "model", description["arrays"]["model"])
    fields = {name: description[name] for name in ("sample_rate", "epoch", "global_step", "metadata")}
    return LoadedModel(model, arrays, "saved model", **fields)


def _open_checkpoint(path, step):
    folder, named = checkpoint.locate(str(path))
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        steps = checkpoints.steps()
        chosen = step if step is not None else named
        if chosen is None:
            chosen = checkpoints.best_step() if checkpoints.best_step() is not None else steps[-1]
        if chosen not in steps:
            raise CheckpointError(f"{folder} has no checkpoint {chosen}; it has {', '.join(map(str, steps))}")
        config = ml_collections.ConfigDict(checkpoints.config(chosen), convert_dict=True)
        variables = checkpoints.parts(chosen, checkpoint.VARIABLES)
        metrics = checkpoints.metrics(chosen)
    finally:
        checkpoints.close()
    try:
        model = build.build_model(config)
    except ConfigError as error:
        raise CheckpointError(f"{folder / str(chosen)}: {error}") from error
    return LoadedModel(
        model, variables, "checkpoint", sample_rate=config.data.sample_rate, global_step=chosen, metadata=metrics
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


def _read_description(path):
    try:
        description = json.loads((path / DESCRIPTION).read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / DESCRIPTION} is damaged: {array_store.first_line(error)}") from error
    if not isinstance(description, dict) or not isinstance(description.get("format"), int):
        raise CheckpointError(f"{path / DESCRIPTION} is not the description of a saved model")
    if description["format"] != _FORMAT:
        raise CheckpointError(
            f"{path} has format {description['format']}; this version reads format {_FORMAT}, install a newer one"
        )
    missing = _KEYS - description.keys()
    if missing:
        raise CheckpointError(f"{path / DESCRIPTION} is damaged: it lacks {', '.join(sorted(missing))}")
    return description


def _model_config(model):
    fields = [field.name for field in dataclasses.fields(AudioVAE) if field.name not in ("parent", "name")]
    config = {name: getattr(model, name) for name in fields}
    return {**config, "dtype": str(np.dtype(model.dtype))}


def _model(config, where):
    try:
        return AudioVAE(**config)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{where}: its config makes no AudioVAE: {error}") from error


def _describe_module(module):
    cls = type(module)
    fields = [f.name for f in dataclasses.fields(cls) if f.name not in ("parent", "name")]
    arguments = {name: getattr(module, name) for name in fields}
    if "dtype" in arguments:
        arguments["dtype"] = str(np.dtype(arguments["dtype"]))
    return {resolve.TARGET: resolve.dotted_name(cls), **arguments}


def _put(temporary, path):
    """Move a finished folder to `path`, over the saved model that may be there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.rename(path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        old.rename(path)
        raise
    shutil.rmtree(old)
