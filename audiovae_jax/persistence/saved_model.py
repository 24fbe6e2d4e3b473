"""`save_model` and `load_model`: a model with all that is needed to use it, and nothing to be remembered.

A saved model is a folder: `model.json`, which a person can read, and Orbax trees of arrays beside it,
`model/` and, if given, `optimizer/` and `discriminator/`. The JSON has a checksum for every array.
"""

import contextlib
import dataclasses
import json
import os
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
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.persistence import checkpoint, locate
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.storage import array_store, atomic
from audiovae_jax.storage.bucket_path import BucketPath, local_copy
from audiovae_jax.storage.checksum import json_checksum
from audiovae_jax.torch_io import audio_vae

PyTree = Any
DESCRIPTION = "model.json"
_FORMAT = 1
_KEYS = {
    *("format", "config", "sample_rate", "channels", "hop_length", "latent_statistics", "encoder_frozen"),
    *("parameter_count", "epoch", "global_step", "metadata", "discriminator", "arrays", "checksum"),
}


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

    The folder is written beside its place and then put there, see `atomic.replacing_folder`.

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
    if (discriminator is None) != (discriminator_params is None):
        raise CheckpointError("give discriminator and discriminator_params together")
    trees = {"model": {name: variables[name] for name in checkpoint.VARIABLES}}
    if optimizer_state is not None:
        trees["optimizer"] = optimizer_state
    if discriminator is not None:
        trees["discriminator"] = discriminator_params
    counts = {"sample_rate": (sample_rate, 1), "epoch": (epoch, 0), "global_step": (global_step, 0)}
    description = {
        "config": _arguments(model),
        **{
            name: None if value is None else whole_number(value, name, CheckpointError, least=least)
            for name, (value, least) in counts.items()
        },
        "channels": model.in_channels,
        "hop_length": model.hop_length,
        "encoder_frozen": model.encoder_frozen,
        "parameter_count": count_parameters(variables["params"]),
        "metadata": metadata or {},
        "discriminator": None if discriminator is None else _describe_module(discriminator),
    }
    _write(Path(path), description, trees)


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
    path = locate.opened_path(path)
    if isinstance(path, BucketPath):
        return _open_url(path, step, strict)
    if not os.path.exists(path):  # which is not Path.exists: that raises for names that cannot be
        raise CheckpointError(f"{path}: there is no such file or folder")
    if not path.is_dir() or (path / DESCRIPTION).is_file():
        if step is not None:
            raise CheckpointError(f"{path} is one model, so there is no step={step} to choose; give a training workdir")
        return _open_saved(path) if path.is_dir() else _open_torch(path, strict)
    return _open_checkpoint(path, step)


def load_from_lightning_checkpoint(path: str | Path) -> tuple[AudioVAE, dict]:
    """`(model, variables)` of a Lightning checkpoint of the PyTorch system; `load_model` takes it as well."""
    return load_model(path)


def with_latent_statistics(source: str | Path, target: str | Path, mean: np.ndarray, std: np.ndarray, metadata: dict):
    """Write the model at `source` to `target` with other latent statistics; all else that a saved model has is kept.

    Args:
      source: whatever `load_model` takes.
      target: see `save_model`; may be `source`.
      mean, std: `[latent_dim]`.
      metadata: added to what is there.

    Raises:
      CheckpointError: as `load_model` and `save_model`.
    """
    target = Path(target)
    statistics = {"latent_mean": np.asarray(mean, np.float32), "latent_std": np.asarray(std, np.float32)}
    with at_hand(locate.opened_path(source)) as local:
        _with_latent_statistics(local, target, statistics, metadata)


def _with_latent_statistics(source, target, statistics, metadata):
    if not (source / DESCRIPTION).is_file():
        loaded = open_model(source)
        save_model(
            loaded.model,
            {**loaded.variables, "latent_statistics": statistics},
            target,
            epoch=loaded.epoch,
            global_step=loaded.global_step,
            metadata={**loaded.metadata, **metadata},
            sample_rate=loaded.sample_rate,
        )
        return
    description = read_description(source)
    arrays = description["arrays"]
    trees = {name: array_store.read_tree(source / name, arrays[name]) for name in arrays}
    trees["model"]["latent_statistics"] = statistics
    _write(target, {**description, "metadata": {**description["metadata"], **metadata}}, trees)


def is_calibrated(variables: dict) -> bool:
    """Whether a model's latent statistics are others than those that it starts with."""
    statistics = variables["latent_statistics"]
    return bool(np.any(statistics["latent_mean"] != 0) or np.any(statistics["latent_std"] != 1))


def require_target(path: str | Path):
    """Raise CheckpointError unless a saved model can be put at `path`, before much is computed for it."""
    path = Path(path)
    if os.path.exists(path) and not (path / DESCRIPTION).is_file():
        raise CheckpointError(f"{path} exists and is not a saved model; give another path")
    try:
        atomic.require_writable(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be written: {error.strerror or error}; give another path") from error


def _write(path, description, trees):
    """Put a folder of `trees` and their description at `path`, whole or not at all."""
    require_target(path)
    description = {
        "format": _FORMAT,
        **{
            key: value
            for key, value in description.items()
            if key not in ("format", "latent_statistics", "arrays", "checksum")
        },
        "latent_statistics": "calibrated" if is_calibrated(trees["model"]) else "initial",
        "arrays": {name: array_store.describe(tree) for name, tree in trees.items()},
    }
    try:
        json.dumps(description, allow_nan=False)  # readers in other languages know no NaN
        description["checksum"] = json_checksum(description)
        text = json.dumps(description, indent=2) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} was not written: epoch, global_step and metadata must be what JSON can hold ({error})"
        ) from error
    try:
        with atomic.replacing_folder(path) as temporary:
            for name, tree in trees.items():
                array_store.write_tree(temporary / name, tree)
            (temporary / DESCRIPTION).write_text(text)
    except OSError as error:
        raise CheckpointError(f"{path} was not written: {error.strerror or error}") from error


def _open_url(path, step, strict):
    """`open_model` of what is in a bucket: all of a file or a saved model is fetched, and one of a workdir's steps."""
    with at_hand(path) as local:
        if local is not path:
            return open_model(local, step=step, strict=strict)
    return _open_checkpoint(path, step)


@contextlib.contextmanager
def at_hand(path: Path | BucketPath) -> Iterator[Path | BucketPath]:
    """A copy on this machine of the file or saved model that is behind a URL; a workdir stays where it is.

    Raises:
      CheckpointError: there is nothing there; what is raised inside names the URL.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    local = None
    try:
        if not path.exists():
            raise CheckpointError(f"{path}: there is no such file or folder")
        if path.is_dir() and not (path / DESCRIPTION).is_file():
            yield path
            return
        with local_copy(path) as local:
            yield local
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(local), str(path))) from error


def _open_saved(path):
    description = read_description(path)
    model = _model(description["config"], str(path / DESCRIPTION))
    described = description["arrays"]["model"]
    array_store.require_same(array_store.describe_shapes(model.shapes()), described, str(path / DESCRIPTION))
    arrays = array_store.read_tree(path / "model", described)
    fields = {name: description[name] for name in ("sample_rate", "epoch", "global_step", "metadata")}
    return LoadedModel(model, arrays, "saved model", **fields)


def _open_checkpoint(path, step):
    folder, named = locate.locate(path)
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


def read_description(path: Path) -> dict:
    """The contents of a saved model's JSON, checked."""
    try:
        description = json.loads((path / DESCRIPTION).read_text())
    except (OSError, ValueError, RecursionError) as error:
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
    arrays = description["arrays"]
    if (
        not isinstance(arrays, dict)
        or "model" not in arrays
        or not all(
            isinstance(tree, dict) and all(isinstance(a, str) for a in tree.values()) for tree in arrays.values()
        )
    ):
        raise CheckpointError(f"{path / DESCRIPTION} is damaged: its arrays are not described")
    if description["checksum"] != json_checksum(description):
        raise CheckpointError(f"{path / DESCRIPTION} does not match its checksum: it is damaged, or was edited")
    return description


def _model(config, where):
    with as_checkpoint_error(f"{where}: its config makes no AudioVAE"):
        return AudioVAE(**config)


def _describe_module(module):
    return {resolve.TARGET: resolve.dotted_name(type(module)), **_arguments(module)}


def _arguments(module):
    """The arguments that make a linen module again, as JSON can hold them."""
    fields = [f.name for f in dataclasses.fields(module) if f.name not in ("parent", "name")]  # linen's own
    arguments = {name: getattr(module, name) for name in fields}
    if "dtype" in arguments:
        arguments["dtype"] = str(np.dtype(arguments["dtype"]))
    return arguments
