"""Builds the models of other projects from their configs and shapes."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from audiovae_jax.errors import CheckpointError, whole_number
from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.models.posterior import parameters_per_latent
from audiovae_jax.torch_io import architecture
from audiovae_jax.torch_io.dialects import DACVAE, Dialect

DIFFUSERS_CLASS = "AutoencoderOobleck"
_DILATIONS = (1, 3, 9)  # of all these models
# Keys of the configs that are the arguments of `AudioVAE`.
_DIFFUSERS_KEYS = {
    "encoder_hidden_size": "base_channels",
    "channel_multiples": "channel_mults",
    "downsampling_ratios": "strides",
    "decoder_channels": "decoder_base_channels",
    "decoder_input_channels": "latent_dim",
    "audio_channels": "in_channels",
}
_ENCODER_KEYS = {"in_channels": "in_channels", "channels": "base_channels", "c_mults": "channel_mults"}
_DECODER_KEYS = {"out_channels": "in_channels", "channels": "decoder_base_channels", "latent_dim": "latent_dim"}
_UNSUPPORTED = ("antialias_activation", "use_nearest_upsample", "soft_clip")  # options of stable-audio-tools


@dataclasses.dataclass(frozen=True)
class Stated:
    """The settings that a project's config states.

    Attributes:
      arguments: of `AudioVAE`.
      sample_rate: in Hz, or None.
      scale: that latents are divided by.
    """

    arguments: dict[str, Any]
    sample_rate: int | None = None
    scale: float = 1.0


def build(
    tensors: Mapping[str, np.ndarray], dialect: Dialect, config: dict | None, notes: list[str]
) -> tuple[AudioVAE, Stated]:
    """Build the model of another project.

    Args:
      tensors: of the model, without prefix.
      dialect: of their names.
      config: the project's config, or None.
      notes: gets a line for what was inferred.

    Returns:
      `(model, stated)`.

    Raises:
      CheckpointError: the config and the tensors differ, or the model is of a kind that `AudioVAE` is not.
    """
    size = architecture.infer_audio_vae(tensors, dialect)
    kind = architecture.infer_kind(tensors, dialect, size)
    stated = Stated({}) if config is None else read_config(config)
    shown = {**size, **kind}
    for key, value in stated.arguments.items():
        if key == "decoder_base_channels" and value == size["base_channels"]:
            value = None
        if key in shown and shown[key] != value:
            raise CheckpointError(f"its config has {key}={value}, but its tensors have {key}={shown[key]}")
        shown[key] = value
    if "posterior" not in kind and shown.get("posterior", "none") != "none":
        raise CheckpointError("its config has a Gaussian bottleneck, but its encoder has no channels for the scales")
    if "posterior" not in shown:
        raise CheckpointError(
            f"its encoder's output has as many channels as its decoder's input, {size['latent_dim']}: it has no "
            "bottleneck, or one without weights. Its config tells which; give it with --model_config"
        )
    if config is None:
        assumed = ""
        if "final_tanh" not in shown:
            shown["final_tanh"] = False
            assumed = "; final_tanh is assumed, since shapes do not determine it"
        listed = ", ".join(f"{key}={value}" for key, value in shown.items())
        notes.append(f"{dialect.name}'s config is not beside it; inferred from its tensors: {listed}{assumed}")
    if dialect is DACVAE and any(stride % 2 for stride in size["strides"]):
        raise CheckpointError(
            f"its strides are {size['strides']}. DACVAE pads odd strides differently in its encoder and decoder, which "
            "an AudioVAE does not; no published DACVAE has odd strides"
        )
    if size["kernel_size"] != 7:
        raise CheckpointError(f"its residual units have kernels of {size['kernel_size']}; {dialect.name}'s have 7")
    try:
        return AudioVAE(**shown, dilations=_DILATIONS), stated
    except ValueError as error:
        raise CheckpointError(f"its tensors do not belong to an AudioVAE: {error}") from None


def read_config(config: dict) -> Stated:
    """Read the config of diffusers, stable-audio-tools, or DAC's metadata.

    Raises:
      CheckpointError: it is of another model.
    """
    if "_class_name" in config:
        return _of_diffusers(config)
    if "kwargs" in config:
        return _of_dac(config["kwargs"])
    return _of_stable_audio_tools(config)


def diffusers_config(model: AudioVAE, sample_rate: int | None) -> dict:
    """The `config.json` of a model for diffusers.

    Raises:
      CheckpointError: diffusers has no such model.
    """
    _require_oobleck(model, "diffusers", activation=("snake_beta",), posterior=("softplus",), final_tanh=(False,))
    if model.base_channels != 2 * model.latent_dim:
        raise CheckpointError(
            f"base_channels={model.base_channels} and latent_dim={model.latent_dim}: in diffusers, base_channels is "
            "twice latent_dim; export it for stable-audio-tools"
        )
    values = {ours: getattr(model, ours) for ours in _DIFFUSERS_KEYS.values()}
    values["decoder_base_channels"] = model.decoder_base_channels or model.base_channels
    return {
        "_class_name": DIFFUSERS_CLASS,
        **{theirs: _listed(values[ours]) for theirs, ours in _DIFFUSERS_KEYS.items()},
        "sampling_rate": sample_rate or 44100,
    }


def stable_audio_tools_config(model: AudioVAE, sample_rate: int | None) -> dict:
    """The model config of a model for stable-audio-tools.

    Raises:
      CheckpointError: stable-audio-tools has no such model.
    """
    _require_oobleck(model, "stable-audio-tools", activation=("snake_beta", "elu"))
    shared = {
        "c_mults": list(model.channel_mults),
        "strides": list(model.strides),
        "use_snake": model.activation == "snake_beta",
    }
    encoded = parameters_per_latent(model.posterior) * model.latent_dim
    encoder = {"in_channels": model.in_channels, "channels": model.base_channels, **shared, "latent_dim": encoded}
    width = model.decoder_base_channels or model.base_channels
    decoder = {"out_channels": model.in_channels, "channels": width, **shared, "latent_dim": model.latent_dim}
    parts = {
        "encoder": {"type": "oobleck", "config": encoder},
        "decoder": {"type": "oobleck", "config": {**decoder, "final_tanh": model.final_tanh}},
        **({} if model.posterior == "none" else {"bottleneck": {"type": "vae"}}),
        "latent_dim": model.latent_dim,
        "downsampling_ratio": model.hop_length,
        "io_channels": model.in_channels,
    }
    rate = sample_rate or 44100
    return {
        "model_type": "autoencoder",
        "sample_size": 65536 // model.hop_length * model.hop_length or model.hop_length,
        "sample_rate": rate,
        "audio_channels": model.in_channels,
        "model": parts,
    }


def _require_oobleck(model, project, **allowed):
    needed = {
        "kernel_size": (7,),
        "dilations": (_DILATIONS,),
        "posterior": ("softplus", "none"),
        "final_bias": (False,),
        "bottleneck_channels": (None,),
        "padding": ("ceil",) if any(stride % 2 for stride in model.strides) else ("floor", "ceil"),
        **allowed,
    }
    for key, values in needed.items():
        if getattr(model, key) not in values:
            shown = " or ".join(map(str, values))
            raise CheckpointError(f"{key}={getattr(model, key)}: models of {project} have {key}={shown}")


def _of_diffusers(config):
    if config["_class_name"] != DIFFUSERS_CLASS:
        raise CheckpointError(f"its config is of {config['_class_name']}, not of {DIFFUSERS_CLASS}")
    arguments = {ours: _value(config[theirs]) for theirs, ours in _DIFFUSERS_KEYS.items() if theirs in config}
    return Stated(arguments, _rate(config.get("sampling_rate")))


def _of_dac(config):
    if not isinstance(config, dict):
        return Stated({})
    keys = {"encoder_dim": "base_channels", "encoder_rates": "strides"}
    return Stated(
        {ours: _value(config[theirs]) for theirs, ours in keys.items() if theirs in config},
        _rate(config.get("sample_rate")),
    )


def _of_stable_audio_tools(config):
    parts, scale = config.get("model"), 1.0
    outer = parts.get("pretransform") if isinstance(parts, dict) else None
    if isinstance(outer, dict):  # a diffusion model
        if outer.get("type") != "autoencoder":
            raise CheckpointError(f"its model_config has a pretransform of type {outer.get('type')!r}, not autoencoder")
        parts, scale = outer.get("config"), outer.get("scale", 1.0)
    if not isinstance(parts, dict) or not {"encoder", "decoder"} <= parts.keys():
        kind = config.get("model_type", "no model_type")
        raise CheckpointError(f"its model_config ({kind}) has no autoencoder with encoder and decoder")
    arguments = {}
    for part, keys in (("encoder", _ENCODER_KEYS), ("decoder", _DECODER_KEYS)):
        section = parts[part] if isinstance(parts[part], dict) else {}
        if section.get("type") != "oobleck":
            raise CheckpointError(f"its {part} is of type {section.get('type')!r}; only oobleck is an AudioVAE")
        options = section.get("config", {})
        found = [name for name in _UNSUPPORTED if options.get(name) or section.get(name)]
        if found:
            raise CheckpointError(f"its {part} has {found[0]}=true, which an AudioVAE does not support")
        arguments |= {ours: _value(options[theirs]) for theirs, ours in keys.items() if theirs in options}
        arguments |= {"strides": _value(options["strides"])} if "strides" in options else {}
    arguments["final_tanh"] = bool(options.get("final_tanh", True))
    bottleneck = parts.get("bottleneck")
    kind = bottleneck.get("type") if isinstance(bottleneck, dict) else None
    if kind not in ("vae", None):
        raise CheckpointError(f"its bottleneck is of type {kind!r}; an AudioVAE has the type 'vae', or none")
    arguments["posterior"] = "none" if kind is None else "softplus"
    if not isinstance(scale, (int, float)) or not math.isfinite(scale) or scale <= 0:
        raise CheckpointError(f"its pretransform has scale={scale!r}, which is not a positive number")
    return Stated(arguments, _rate(config.get("sample_rate")), float(scale))


def _rate(value):
    return None if value is None else whole_number(value, "its sample rate", CheckpointError)


def _value(value):
    return tuple(value) if isinstance(value, list) else value


def _listed(value):
    return list(value) if isinstance(value, tuple) else value
