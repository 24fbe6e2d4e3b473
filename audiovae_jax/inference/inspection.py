"""Describes a model file, or an export."""

import jax
import numpy as np

from audiovae_jax.errors import ConfigError
from audiovae_jax.inference import stablehlo
from audiovae_jax.inference.codec import Codec
from audiovae_jax.models.audio_vae import CONFIG_KEYS
from audiovae_jax.models.layer_table import layer_table
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.models.receptive_field import decoder_context, encoder_context
from audiovae_jax.persistence import locate, model_folder, saved_model, training_state
from audiovae_jax.storage.bucket_path import BucketPath


def inspect_model(path: str, *, step: int | None = None) -> dict:
    """Describe the model at a path that `load_model` accepts, as plain values.

    A folder that `export_stablehlo` wrote is described too.

    Raises:
      CheckpointError: there is no model at `path`, or it is damaged.
    """
    if stablehlo.is_export(path):
        return stablehlo.inspect_export(path)
    path = locate.pinned(path)
    loaded = saved_model.open_model(path, step=step, training=True)
    try:
        state = training_state.training_state_of(loaded, path)
        discriminator = _discriminator(state)
    except ConfigError as error:  # the discriminator's class cannot be imported here
        state = {"epoch": loaded.epoch, "global_step": loaded.global_step}
        there = training_state.beside(loaded, path)
        discriminator = (
            f"{there.discriminator}, {there.discriminator_parameters:,} parameters; cannot be loaded: {error}"
        )
    model, variables = loaded.model, loaded.variables
    rate = loaded.sample_rate
    statistics = {name: np.asarray(value) for name, value in variables["latent_statistics"].items()}
    mean, std = statistics["latent_mean"], statistics["latent_std"]
    per_second = None if rate is None else rate / model.hop_length
    contexts = {"encoder": encoder_context(model), "decoder": decoder_context(model)}
    counts = {name: count_parameters(part) for name, part in variables["params"].items()}
    dtypes = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(variables)})
    return {
        "path": str(path),
        "kind": loaded.kind.value,
        "bytes": _size(locate.opened_path(path)),
        "fingerprint": Codec.fingerprint_of(model, variables),
        "config": {key: getattr(model, key) for key in CONFIG_KEYS},
        "computes in": str(np.dtype(model.dtype)),
        "stored in": ", ".join(dtypes),
        "encoder frozen": model.encoder_frozen,
        "parameters": sum(counts.values()),
        "of them": counts,
        "sample rate (Hz)": rate,
        "hop (samples)": model.hop_length,
        "latent frames per second": per_second,
        "latent values per second": None if per_second is None else per_second * model.latent_dim,
        "compression (audio values per latent value)": model.hop_length * model.in_channels / model.latent_dim,
        "context (frames before and after)": {name: tuple(context) for name, context in contexts.items()},
        "latent statistics": _spread(mean, std)
        if model_folder.is_calibrated(variables)
        else "initial (0 and 1); audiovae-jax calibrate_latents sets them",
        "epoch": state["epoch"],
        "step": state["global_step"],
        "metadata": loaded.metadata,
        "notes": loaded.notes,
        "discriminator": discriminator,
        "layers": [_layer(row, rate) for row in layer_table(model, variables["params"])],
    }


def _layer(row, rate):
    """Describe a layer; without a sample rate, its rate is unknown."""
    return {
        "layer": row.name,
        "width": row.width,
        "samples per position": row.stride,
        "rate (Hz)": None if rate is None else rate / row.stride,
        "receptive field (samples)": row.receptive_field,
        "parameters": row.parameters,
    }


def _spread(mean, std):
    return f"mean {mean.min():.4g} to {mean.max():.4g}, standard deviation {std.min():.4g} to {std.max():.4g}"


def _discriminator(state):
    if state["discriminator"] is None:
        return "none"
    return f"{type(state['discriminator']).__name__}, {count_parameters(state['discriminator_params']):,} parameters"


def _size(path):
    if isinstance(path, BucketPath):
        return path.size()
    files = [p for p in path.rglob("*") if p.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)
