"""`export_audio_vae`: writes a model as a file of the PyTorch system."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy

from audiovae_jax.errors import CheckpointError, whole_number
from audiovae_jax.models.audio_vae import KIND_KEYS, SIZE_KEYS, AudioVAE
from audiovae_jax.storage import array_store, atomic
from audiovae_jax.torch_io import layout, state_dict
from audiovae_jax.torch_io.audio_vae import STATISTICS
from audiovae_jax.torch_io.files import reader, writer


def export_audio_vae(
    model: AudioVAE,
    variables: Mapping[str, Any],
    path: str | Path,
    *,
    optimizer_state: dict | None = None,
    scheduler_state: dict | None = None,
    epoch: int | None = None,
    global_step: int | None = None,
    metadata: dict[str, Any] | None = None,
    sample_rate: int | None = None,
):
    """Write a model with the names and layout of the PyTorch system, without torch.

    Args:
      model: the model.
      variables: of the model.
      path: ends in `.safetensors` (weights, and the config as metadata) or `.pt` (the layout of the torch system's
        `save_model`). The file is written atomically.
      optimizer_state: state dict of torch's optimizer, see `training.optimizer_state_dict`; `.pt` only.
      scheduler_state: state dict of torch's scheduler; `.pt` only.
      epoch: saved with the weights.
      global_step: saved with the weights.
      metadata: saved with the weights.
      sample_rate: in Hz. It is saved in the metadata, because the torch system has no field for it.

    Raises:
      CheckpointError: the suffix is unknown, or the file cannot contain these values or be written.
    """
    path = Path(path)
    require_target(path)
    for key in KIND_KEYS:
        if (value := getattr(model, key)) != (theirs := getattr(AudioVAE, key)):
            raise CheckpointError(
                f" was not written: the model has {key}={value!r}, and the PyTorch system only {theirs!r}", path=path
            )
    variables = {name: jax.tree.map(lambda x: np.asarray(x, np.float32), tree) for name, tree in variables.items()}
    needed, given = array_store.describe_shapes(model.shapes()), array_store.describe_shapes(variables)
    for name, ours, theirs in array_store.differences(needed, given):
        raise CheckpointError(
            f"{path} was not written: {name} is {theirs} in the variables and {ours} in the model; give the model that "
            "the variables belong to"
        )
    weights = audio_vae_state_dict(variables)
    config = {key: _listed(getattr(model, key)) for key in SIZE_KEYS}
    if sample_rate is not None:
        rate = whole_number(sample_rate, "sample_rate", CheckpointError)
        metadata = {**(metadata or {}), "sample_rate": rate}
    optional = {"epoch": epoch, "global_step": global_step, "metadata": metadata}
    optional = {key: value for key, value in optional.items() if value is not None}
    try:
        if path.suffix == ".pt":
            states = {"optimizer_state_dict": optimizer_state, "scheduler_state_dict": scheduler_state}
            content = {
                "model_state_dict": weights,
                "model_config": config,
                "latent_statistics": {name: weights[name] for name in STATISTICS},
                "encoder_frozen": model.encoder_frozen,
                **{key: value for key, value in states.items() if value is not None},
                **optional,
            }
            writer.write_checkpoint(path, content)
        else:
            if optimizer_state is not None or scheduler_state is not None:
                raise CheckpointError(": safetensors contain only weights; export optimizer states to .pt", path=path)
            described = {"model_config": config, "encoder_frozen": model.encoder_frozen, **optional}
            _write_safetensors(path, weights, described)
    except (TypeError, ValueError, RecursionError) as error:
        raise CheckpointError(f" was not written: {error}", path=path) from None
    except OSError as error:
        raise CheckpointError(f" was not written: {error.strerror or error}", path=path) from error


def require_target(path: str | Path):
    """Raise CheckpointError unless `export_audio_vae` can write to `path`. Call it before expensive work."""
    if Path(path).suffix not in (".pt", ".safetensors"):
        raise CheckpointError(": the name must end in .pt or .safetensors", path=path)
    try:
        atomic.require_writable(path)
    except OSError as error:
        raise CheckpointError(f" cannot be written: {error.strerror or error}; give another path", path=path) from error


def audio_vae_state_dict(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The model's state dict, with torch's names, layout and order.

    Kernels without weight norm are written with it: their norm as the gain, and themselves as the direction.
    """
    tensors = {name: np.asarray(variables["latent_statistics"][name])[None, :, None] for name in STATISTICS}
    for path, array in flax.traverse_util.flatten_dict(variables["params"]).items():
        tensor = np.ascontiguousarray(layout.to_torch(path, np.asarray(array, np.float32)))
        if path[-1] != "kernel":
            tensors[layout.torch_key(path)] = tensor
            continue
        stem = layout.torch_key(path).rpartition(".")[0]
        tensors[f"{stem}.weight_g"] = state_dict.unfolded(tensor, gain=True)
        tensors[f"{stem}.weight_v"] = state_dict.unfolded(tensor, gain=False)
    return {key: tensors[key] for key in sorted(tensors, key=layout.order)}


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def _write_safetensors(path, weights, described):
    metadata = {"format": "pt", **{key: json.dumps(value) for key, value in described.items()}}
    metadata["crc32"] = json.dumps({key: reader.crc32(tensor) for key, tensor in weights.items()})
    with atomic.replacing(path) as temporary:
        safetensors.numpy.save_file(weights, temporary, metadata=metadata)
