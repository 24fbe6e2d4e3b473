"""`export_audio_vae`: writes a model as a file of the PyTorch system."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import numpy as np
import safetensors.numpy

from audiovae_jax.errors import CheckpointError, whole_number
from audiovae_jax.models.audio_vae import SIZE_KEYS, AudioVAE, kind_of
from audiovae_jax.storage import array_store, atomic
from audiovae_jax.torch_io import foreign, layout, source, state_dict
from audiovae_jax.torch_io.audio_vae import STATISTICS
from audiovae_jax.torch_io.dialects import DIFFUSERS, NATIVE, STABLE_AUDIO_TOOLS, Dialect
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
) -> dict[str, np.ndarray]:
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

    Returns:
      The tensors that were written.

    Raises:
      CheckpointError: the suffix is unknown, or the file cannot contain these values or be written.
    """
    path = Path(path)
    require_target(path)
    for key, value in kind_of(model).items():
        raise CheckpointError(
            f" was not written: the model has {key}={value!r}, and the PyTorch system only "
            f"{getattr(AudioVAE, key)!r}; give the project to export it for",
            path=path,
        )
    variables = _checked(model, variables, path)
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
    return weights


def export_for(
    project: str, model: AudioVAE, variables: Mapping[str, Any], path: str | Path, sample_rate: int | None
) -> dict[str, np.ndarray]:
    """Write a model for another project, without torch.

    Its latent statistics are not written, because the other projects have none.

    Args:
      project: one of `PROJECTS`.
      model, variables: the model.
      path: for diffusers, a folder to create, which gets `config.json` and the weights. For stable-audio-tools, a name
        that ends in `.ckpt` or `.safetensors`; the model config is written beside it, with the suffix `.json`.
      sample_rate: in Hz; None for 44,100.

    Returns:
      The tensors that were written.

    Raises:
      CheckpointError: the project has no such model, or the file cannot be written.
    """
    path = Path(path)
    require_target(path, project)
    try:
        config = PROJECTS[project].config(model, sample_rate)
    except CheckpointError as error:
        raise CheckpointError(f" was not written: {error}", path=path) from None
    weights = audio_vae_state_dict(_checked(model, variables, path), PROJECTS[project].dialect, len(model.strides))
    text = json.dumps(config, indent=2) + "\n"
    try:
        if project == DIFFUSERS.name:
            with atomic.replacing_folder(path) as temporary:
                temporary.mkdir()
                (temporary / source.DIFFUSERS_CONFIG).write_text(text)
                safetensors.numpy.save_file(weights, temporary / source.DIFFUSERS_WEIGHTS, metadata={"format": "pt"})
            return weights
        if path.suffix == ".ckpt":
            writer.write_checkpoint(path, {"state_dict": weights, "model_config": config})
        else:
            with atomic.replacing(path) as temporary:
                safetensors.numpy.save_file(weights, temporary, metadata={"format": "pt"})
        with atomic.replacing(path.with_suffix(".json")) as temporary:
            temporary.write_text(text)
    except OSError as error:
        raise CheckpointError(f" was not written: {error.strerror or error}", path=path) from error
    return weights


@dataclasses.dataclass(frozen=True)
class _Project:
    dialect: Dialect
    config: Callable[[AudioVAE, int | None], dict]
    suffixes: tuple[str, ...]


PROJECTS = {
    DIFFUSERS.name: _Project(DIFFUSERS, foreign.diffusers_config, ()),
    STABLE_AUDIO_TOOLS.name: _Project(STABLE_AUDIO_TOOLS, foreign.stable_audio_tools_config, (".ckpt", ".safetensors")),
}


def require_target(path: str | Path, project: str | None = None):
    """Raise CheckpointError unless a model can be written to `path`.

    Call it before expensive work.

    Args:
      path: a file, or a folder for diffusers.
      project: one of `PROJECTS`; None for the PyTorch system.
    """
    suffixes = (".pt", ".safetensors") if project is None else PROJECTS[project].suffixes
    if suffixes and Path(path).suffix not in suffixes:
        raise CheckpointError(f": the name must end in {' or '.join(suffixes)}", path=path)
    if not suffixes and Path(path).exists():
        raise CheckpointError(" exists; give another folder", path=path)
    try:
        atomic.require_writable(path)
    except OSError as error:
        raise CheckpointError(f" cannot be written: {error.strerror or error}; give another path", path=path) from error


def audio_vae_state_dict(
    variables: Mapping[str, Any], dialect: Dialect = NATIVE, blocks: int = 0
) -> dict[str, np.ndarray]:
    """The model's state dict, with torch's names, layout and order.

    Kernels without weight norm are written with it: their norm as the gain, and themselves as the direction.

    Args:
      variables: of the model.
      dialect: of the names. Those of other projects are sorted, and have no latent statistics.
      blocks: number of the model's blocks, for dialects of other projects.
    """
    tensors = {}
    if dialect is NATIVE:
        tensors = {name: np.asarray(variables["latent_statistics"][name])[None, :, None] for name in STATISTICS}
    for path, array in flax.traverse_util.flatten_dict(variables["params"]).items():
        array, key = np.asarray(array, np.float32), dialect.key(path, blocks)
        is_flat = dialect.flat_activations and path[-1] in layout.ACTIVATION
        tensor = array if is_flat else np.ascontiguousarray(layout.to_torch(path, array))
        if path[-1] != "kernel":
            tensors[key] = tensor
            continue
        stem = key.rpartition(".")[0]
        tensors[f"{stem}.weight_g"] = state_dict.unfolded(tensor, gain=True)
        tensors[f"{stem}.weight_v"] = state_dict.unfolded(tensor, gain=False)
    return {key: tensors[key] for key in sorted(tensors, key=layout.order if dialect is NATIVE else None)}


def _checked(model, variables, path):
    """Return the variables as float32 arrays, if they are the model's."""
    variables = {name: jax.tree.map(lambda x: np.asarray(x, np.float32), tree) for name, tree in variables.items()}
    needed, given = array_store.describe_shapes(model.shapes()), array_store.describe_shapes(variables)
    for name, ours, theirs in array_store.differences(needed, given):
        raise CheckpointError(
            f"{path} was not written: {name} is {theirs} in the variables and {ours} in the model; give the model that "
            "the variables belong to"
        )
    return variables


def _listed(value):
    return list(value) if isinstance(value, tuple) else value


def _write_safetensors(path, weights, described):
    metadata = {"format": "pt", **{key: json.dumps(value) for key, value in described.items()}}
    metadata["crc32"] = json.dumps({key: reader.crc32(tensor) for key, tensor in weights.items()})
    with atomic.replacing(path) as temporary:
        safetensors.numpy.save_file(weights, temporary, metadata=metadata)
