"""`read_source`: reads a checkpoint file, or a folder of another project.

A config beside the weights is read too.
"""

import json
from collections.abc import Collection
from pathlib import Path, PurePath
from typing import Any

from audiovae_jax.errors import CheckpointError
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.storage.hub import HubPath
from audiovae_jax.torch_io.files import reader
from audiovae_jax.torch_io.foreign import DIFFUSERS_CLASS

CONFIG = "__config__"  # key of another project's config in what `read_source` returns
DIFFUSERS_CONFIG, STABLE_AUDIO_TOOLS_CONFIG = "config.json", "model_config.json"
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
DIFFUSERS_PIPELINE = "model_index.json"
_VAE = "vae"  # the autoencoder's folder in a pipeline of diffusers
_WEIGHTS = (".safetensors", ".ckpt", ".pth", ".pt")  # of stable-audio-tools, the first is preferred
_MAX_CONFIG = 1 << 20  # bytes


def read_source(path: str | Path, *, skip: Collection[str] = (), model_config: str | Path | None = None) -> dict:
    """Read a file as `read_checkpoint` does, or a folder with the weights of a model.

    Args:
      path: a file; a folder of diffusers, of the model or a pipeline; or one with a config of stable-audio-tools and
        its checkpoint.
      skip: see `read_checkpoint`.
      model_config: the file of another project's config; by default one beside the weights, if any.

    Returns:
      The contents of the file. A folder's tensors are a state dict. A config is under `CONFIG`.

    Raises:
      CheckpointError: a file is missing or damaged, or a folder has no weights or several.
    """
    path, config = Path(path), None
    if path.is_dir():
        path, config = _in_folder(path)
    checkpoint = _sharded(path) if path.name.endswith(".index.json") else reader.read_checkpoint(path, skip=skip)
    if model_config is not None:
        config = _json(Path(model_config))
        if config is None:
            there = Path(model_config).is_file()
            fault = " is not a config of diffusers or stable-audio-tools" if there else ": there is no such file"
            raise CheckpointError(fault, path=model_config)
    if config is None:
        config = next(filter(None, map(_json, _configs_beside(path))), None)
    if config is not None:
        checkpoint[CONFIG] = config
    return checkpoint


def files_of(path: Path | BucketPath | HubPath) -> list:
    """Return the files that `read_source` reads at `path`.

    These are the weights, and configs beside them.

    Raises:
      CheckpointError: a folder has no weights or several.
    """
    weights = _in_folder(path)[0] if path.is_dir() else path
    shards = _shards(weights) if weights.name.endswith(".index.json") else []
    return [weights, *shards, *(config for config in _configs_beside(weights) if config.is_file())]


def is_folder_of_another_project(path: Path | BucketPath | HubPath) -> bool:
    """Whether `read_source` reads the folder at `path`."""
    names = (STABLE_AUDIO_TOOLS_CONFIG, DIFFUSERS_CONFIG)
    return (
        any(_json(path / name) is not None for name in names)
        or any((folder / file).is_file() for folder in (path, path / _VAE) for file in _diffusers_weights())
        or _json(path / _VAE / DIFFUSERS_CONFIG) is not None
    )


def _in_folder(folder):
    """Return the path of the weights in a folder, and its config."""
    config = _json(folder / DIFFUSERS_CONFIG)
    inner = folder / _VAE
    if inner.is_dir() and (config is None or config.get("_class_name") != DIFFUSERS_CLASS):
        return _in_folder(inner)
    weights = [folder / name for name in _diffusers_weights() if (folder / name).is_file()]
    if weights and config is None:
        raise CheckpointError(
            f" has no {DIFFUSERS_CONFIG}, which diffusers writes beside the weights; copy it there, or give "
            f"{weights[0].name} itself to infer the architecture from its shapes",
            path=folder,
        )
    config = config or _json(folder / STABLE_AUDIO_TOOLS_CONFIG)
    for suffix in _WEIGHTS if not weights else ():
        found = (file for file in folder.iterdir() if file.suffix == suffix and file.is_file())
        weights = sorted(found, key=lambda file: file.name)
        if weights:
            break
    if len(weights) != 1:
        found = f"{len(weights)} checkpoints: {', '.join(file.name for file in weights)}" if weights else "no weights"
        raise CheckpointError(f" contains {found}; give the file to read", path=folder)
    return weights[0], config


def _diffusers_weights():
    return DIFFUSERS_WEIGHTS, f"{DIFFUSERS_WEIGHTS}.index.json"


def _configs_beside(weights):
    named = f"{PurePath(weights.name).stem}.json"
    return [weights.parent / name for name in (named, STABLE_AUDIO_TOOLS_CONFIG, DIFFUSERS_CONFIG)]


def _shards(index):
    """Return the safetensors files that an index lists."""
    try:
        files = dict.fromkeys(json.loads(index.read_text())["weight_map"].values())
        parts = [index.parent / Path(name).name for name in files]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f" is not an index of safetensors files ({error})", path=index) from error
    for part in parts:
        if not part.is_file():
            raise CheckpointError(f" lacks {part.name}, which {index.name} lists; download it again", path=index.parent)
    return parts


def _sharded(index):
    """Read the safetensors files that an index lists."""
    tensors: dict[str, Any] = {}
    for part in _shards(index):
        tensors |= reader.read_checkpoint(part)
    tensors.pop(reader.METADATA, None)
    return {"state_dict": tensors}


def _json(path):
    """Return the config of another project at `path`; None if there is none."""
    try:
        if not path.is_file() or _size(path) > _MAX_CONFIG:
            return None
        config = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    known = isinstance(config, dict) and ("_class_name" in config or isinstance(config.get("model_type"), str))
    return config if known else None


def _size(path):
    return path.stat().st_size if isinstance(path, Path) else path.size()
