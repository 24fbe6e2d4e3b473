"""Read and check configs before anything is built or compiled.

`configs/base.py` declares every key with its default. This module checks that a config has exactly those keys and that
its values are compatible with each other.
"""

import difflib
import importlib.util
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_collections

from audiovae_jax.config.resolve import TARGET, did_you_mean
from audiovae_jax.errors import ConfigError

# Flat keys of the PyTorch system, with their current names.
LEGACY_KEYS = {
    "adversarial_warmup_steps": "adversarial.warmup_steps",
    "adversarial_weight": "adversarial.adversarial_weight",
    "feature_matching_weight": "adversarial.feature_matching_weight",
}
# Keys that may differ when a run is resumed. They change how it is operated and recorded, not what it computes.
OPERATIONAL_KEYS = (
    "checkpoint_every", "checkpoint_every_minutes", "checkpoints_kept", "best_checkpoints_kept", "best_metric",
    "early_stopping.metric", "early_stopping.patience", "early_stopping.min_delta", "max_failed_saves", "sample_every",
    "validate_every", "diagnose_every", "safety.max_skipped", "safety.max_rollbacks", "safety.kept_batches",
    "model.remat", "discriminator.remat",
    "data.sample_seconds", "data.num_threads", "data.prefetch_batches", "data.source", "data.max_bad_share",
    "data.read_timeout", "data.retry_seconds", "data.cache", "data.cache_gigabytes", "data.index", "logging.writers",
    "logging.mlflow_uri", "logging.mlflow_experiment", "logging.wandb_project", "stuck_timeout",
)  # fmt: skip
# Operational keys that may differ between the hosts of a run. They change neither the computation nor its schedule.
HOST_KEYS = tuple(key for key in OPERATIONAL_KEYS if key.startswith("data."))
# Keys added later, with the value that reproduces older runs.
_LATER_KEYS = {
    "data.mix": (), "data.padding": "zero", "data.mixture_share": 0.25, "data.full_band_share": None,
    "data.min_loudness_db": None, "data.augment.gain_db": (0.0, 0.0), "data.augment.polarity_probability": 0.0,
    "data.augment.swap_probability": 0.0, "data.val_root": None, "init_weights_only": False, "init_reset": (),
    "optimizer.warmup_steps": 0, "discriminator_optimizer.warmup_steps": 0, "model.activation": "snake",
    "model.posterior": "logvar", "model.padding": "floor", "model.final_bias": True, "model.final_tanh": False,
    "model.decoder_base_channels": None, "model.bottleneck_channels": None, "adversarial.loss": "hinge",
    "adversarial.ramp_steps": 0, "adversarial.r1_weight": 0.0, "adversarial.r2_weight": 0.0, "balancer_norm": 0.0,
    "kl.cycle_steps": 0, "kl.target_bits_per_second": None,
    "alignment._target_": None, "alignment.weight": 0.1, "alignment.cosine_margin": 0.5,
    "alignment.distance_margin": 0.25,
    "losses.stft.w_log1p_mag": 0.0, "discriminator.use_cqt": False, "discriminator.cqt_filters": 32,
    "discriminator.cqt_bins_per_octave": (24, 36, 48), "discriminator.cqt_hop_lengths": (512, 256, 256),
    "discriminator.cqt_octaves": 9, "discriminator.cqt_f_min": 32.70,
    "accumulation_steps": 1, "latent_noise": 0.0,
    "ema.decay": 0.0, "ema.start_step": 0, "ema.power": 0.0, "optimizer.learning_rate_factors": (),
    "optimizer.name": "adamw", "optimizer.schedule": "cosine", "optimizer.decay_steps": 0,
    "discriminator_optimizer.name": "adamw", "discriminator_optimizer.schedule": "cosine",
    "discriminator_optimizer.decay_steps": 0,
}  # fmt: skip
_VALIDATION_METRICS = ("total_loss", "reconstruction_loss", "kl_loss", "si_sdr_db")  # and each loss by its name
_MAX_SAMPLE_SECONDS = 300  # samples are kept in memory and plotted completely
# Sections whose keys are arguments of a callable. They are checked against its signature instead.
_OPEN_SECTIONS = ("discriminator", "losses")
_FFT_KEYS = ("fft_sizes", "n_fft", "n_ffts", "mel_stft_n_ffts")


def finalize(config: ml_collections.ConfigDict, reference: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
    """Return a copy of `config` with legacy keys renamed and all keys checked.

    Args:
      config: the user's config.
      reference: the base config, which has every allowed key.

    Raises:
      ConfigError: a key is unknown or missing. For an unknown key the message gives the nearest name.
    """
    config = ml_collections.ConfigDict(config.to_dict(), convert_dict=True)
    for old, new in LEGACY_KEYS.items():
        if old in config:
            warn_legacy_key(old, new)
            section, key = new.split(".")
            config[section][key] = type(reference[section][key])(config[old])
            del config[old]
    _check_keys(config, reference, "", reference)
    return config


def warn_legacy_key(old: str, new: str):
    """Issue a DeprecationWarning for a flat key of the PyTorch system."""
    warnings.warn(f"config.{old} is deprecated; use config.{new}", DeprecationWarning, stacklevel=2)


def check(config: ml_collections.ConfigDict, device_count: int):
    """Raise ConfigError, with a remedy, for invalid or incompatible values."""
    counts = ("num_steps", "batch_size", "validate_every", "checkpoint_every", "sample_every")
    for key in (*counts, "checkpoints_kept", "best_checkpoints_kept", "max_failed_saves"):
        _require(config[key] >= 1, f"config.{key}={config[key]} must be at least 1")
    for key in ("generator_update_every", "discriminator_update_every", "accumulation_steps"):
        _require(config[key] >= 1, f"config.{key}={config[key]} must be at least 1")
    _require(
        config.batch_size % device_count == 0,
        f"config.batch_size={config.batch_size} cannot be split over {device_count} devices; "
        f"use {_nearest_multiples(config.batch_size, device_count)}",
    )
    parts = device_count * config.accumulation_steps
    _require(
        config.batch_size % parts == 0,
        f"config.batch_size={config.batch_size} cannot be split over {device_count} devices and "
        f"config.accumulation_steps={config.accumulation_steps} parts; use "
        f"{_nearest_multiples(config.batch_size, parts)}",
    )
    for key in ("latent_noise", "balancer_norm"):
        _require(config[key] >= 0, f"config.{key}={config[key]} must be at least 0")
    for key, least in (("max_skipped", 1), ("max_rollbacks", 0), ("kept_batches", 0)):
        _require(config.safety[key] >= least, f"config.safety.{key}={config.safety[key]} must be at least {least}")
    for key in ("checkpoint_every_minutes", "diagnose_every", "stuck_timeout"):
        _require(config[key] >= 0, f"config.{key}={config[key]} must be at least 0")
    strides = config.model.strides
    _require(
        len(strides) > 0 and all(isinstance(stride, int) and stride >= 1 for stride in strides),
        f"config.model.strides={strides} must be positive whole numbers",
    )
    hop = math.prod(strides)
    crop = config.data.crop_length
    _require(
        crop % hop == 0 and crop > 0,
        f"config.data.crop_length={crop} is not a multiple of the model's hop of {hop} samples "
        f"(the product of config.model.strides); use {_nearest_multiples(crop, hop)}",
    )
    mults = config.model.channel_mults
    _require(
        len(mults) == len(strides),
        f"config.model.channel_mults has {len(mults)} entries and config.model.strides {len(strides)}; "
        "give both one entry per block",
    )
    for section in ("losses", "discriminator") if config.use_adversarial else ("losses",):
        flat = flatten(config[section])
        for key, value in flat.items():
            unused = key == "mel_stft_n_ffts" and not flat.get("use_mel_stft", True)
            if key.rpartition(".")[2] in _FFT_KEYS and not unused:
                sizes = value if isinstance(value, (tuple, list)) else (value,)
                _require(
                    len(sizes) > 0 and all(isinstance(size, int) and size > 1 for size in sizes),
                    f"config.{section}.{key}={value!r} must be FFT lengths in samples, at least one",
                )
                longest = max(sizes)
                _require(
                    longest <= crop,
                    f"config.{section}.{key} has an FFT of {longest} samples, longer than "
                    f"config.data.crop_length={crop}; drop it or use crops of at least "
                    f"{math.ceil(longest / hop) * hop}",
                )
    _require(
        config.model.in_channels == config.data.channels,
        f"config.model.in_channels={config.model.in_channels} but config.data.channels={config.data.channels}; "
        "set both to the same value",
    )
    _require(len(config.losses) > 0, "config.losses is empty; name at least one reconstruction loss")
    for name, loss in config.losses.items():
        _require("weight" in loss, f"config.losses.{name} has no weight; give one, for instance 1.0")
    _check_choice(config)
    if config.use_adversarial:
        _require(
            TARGET in config.discriminator,
            f"discriminator must be provided when use_adversarial=True: set config.discriminator.{TARGET} "
            "and its arguments, or config.use_adversarial=False",
        )
    names = {"data.root": config.data.root, "data.val_root": config.data.val_root, "init_from": config.init_from}
    for key, name in names.items():
        _require(name is None or name.strip() != "", f"config.{key} is empty; give a path, or leave the key out")
    _require(
        config.init_from is not None or not config.init_weights_only,
        "config.init_weights_only is set without config.init_from; set init_from to the model to start from",
    )
    _require(0 <= config.seed < 2**32, f"config.seed={config.seed} must lie between 0 and {2**32 - 1}")
    _require(config.data.min_seconds >= 0, f"config.data.min_seconds={config.data.min_seconds} must not be negative")
    _require(
        0 < config.data.validation_fraction < 1,
        f"config.data.validation_fraction={config.data.validation_fraction} must lie between 0 and 1",
    )
    _check_data(config.data)
    for key in ("sample_rate", "channels", "validation_crops", "num_samples", "num_threads", "prefetch_batches"):
        _require(config.data[key] >= 1, f"config.data.{key}={config.data[key]} must be at least 1")


def _check_choice(config):
    """Check the keys that use validation metrics: best checkpoint, early stop."""
    metrics = (*_VALIDATION_METRICS, *config.losses)
    for key, name in {"best_metric": config.best_metric, "early_stopping.metric": config.early_stopping.metric}.items():
        _require(
            name in metrics,
            f"config.{key}={name!r} is not a validation metric{did_you_mean(name, metrics)}; use one of "
            f"{', '.join(metrics)}",
        )
    for key in ("patience", "min_delta"):
        value = config.early_stopping[key]
        _require(value >= 0, f"config.early_stopping.{key}={value} must be at least 0")


def _check_data(data):
    for key in ("mixture_share", "full_band_share", "max_bad_share"):
        _require(data[key] is None or 0 <= data[key] <= 1, f"config.data.{key}={data[key]} must lie between 0 and 1")
    for key in ("polarity_probability", "swap_probability"):
        value = data.augment[key]
        _require(0 <= value <= 1, f"config.data.augment.{key}={value} must lie between 0 and 1")
    _require(
        1 / data.sample_rate <= data.sample_seconds <= _MAX_SAMPLE_SECONDS,
        f"config.data.sample_seconds={data.sample_seconds} must lie between one sample and {_MAX_SAMPLE_SECONDS} s",
    )
    for key in ("read_timeout", "retry_seconds", "cache_gigabytes"):
        _require(data[key] >= 0, f"config.data.{key}={data[key]} must not be negative")
    _require(data.padding in ("zero", "loop"), f"config.data.padding={data.padding!r} must be zero or loop")
    gain = data.augment.gain_db
    _require(
        len(gain) == 2 and gain[0] <= gain[1],
        f"config.data.augment.gain_db={gain} must be two numbers of dB, the lower first",
    )
    _require(
        all(len(part) == 2 and isinstance(part[0], str) and part[1] > 0 for part in data.mix),
        f"config.data.mix={data.mix} must be pairs of a root and a weight above 0: (('DIR', 2.0), ('built-in', 1.0))",
    )
    _require(
        data.root is None or not data.mix,
        "config.data.root and config.data.mix are both set, and root would be ignored; set only one",
    )
    _require(
        data.val_root is None or data.root is not None or bool(data.mix),
        "config.data.val_root is set, but there is nothing to train on; set config.data.root",
    )


def differences(old: dict, new: dict) -> list[str]:
    """Return `key: old -> new` for every key whose change affects training.

    Args:
      old, new: configs as nested dicts.
    """
    old, new = _with_later_keys(flatten(old)), _with_later_keys(flatten(new))
    missing = "(absent)"
    return [
        f"{key}: {old.get(key, missing)!r} -> {new.get(key, missing)!r}"
        for key in sorted(old.keys() | new.keys())
        if _comparable(old.get(key, missing)) != _comparable(new.get(key, missing)) and key not in OPERATIONAL_KEYS
    ]


def _with_later_keys(flat):
    return {**_LATER_KEYS, "discriminator.cqt_sample_rate": flat.get("data.sample_rate"), **flat}


def to_json(config: ml_collections.ConfigDict) -> str:
    """Return the config as indented JSON."""
    return json.dumps(config.to_dict(), indent=2, sort_keys=True) + "\n"


def plain(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the config as a dict of JSON types, for saving and comparing."""
    return json.loads(to_json(config))


def flatten(config, prefix: str = "") -> dict[str, Any]:
    """Flatten nested configs or dicts to `{"section.key": value}`.

    An empty section is kept as a value.
    """
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items") and len(value):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def load_module(path: str | Path):
    """Import the config file at `path` and return its module.

    Raises:
      ConfigError: the file is missing, fails to import, or has no `get_config`.
    """
    path = Path(path)
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        raise ConfigError(f"--config={path}: there is no such file" + (f"; did you mean {near[0]}?" if near else ""))
    spec = importlib.util.spec_from_file_location(f"_config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--config={path} failed: {type(error).__name__}: {error}") from error
    if not hasattr(module, "get_config"):
        raise ConfigError(f"--config={path} has no function get_config; see configs/tiny.py for an example")
    return module


def _check_keys(config, reference, prefix, root):
    for key in config:
        name = f"{prefix}{key}"
        if key not in reference:
            raise ConfigError(f"config has no key {name!r}{suggest_key(name, root)}")
        section = isinstance(reference[key], ml_collections.ConfigDict)
        if section and not isinstance(config[key], ml_collections.ConfigDict):
            raise ConfigError(f"config.{name} is a section of keys, not {config[key]!r}")
        if section and name not in _OPEN_SECTIONS:
            _check_keys(config[key], reference[key], f"{name}.", root)
    for key in reference:
        if key not in config and prefix + key not in _OPEN_SECTIONS:
            raise ConfigError(f"config lacks the key {prefix + key!r}; start from configs/base.py")


def suggest_key(name: str, reference: ml_collections.ConfigDict) -> str:
    """Return `"; did you mean 'section.key'?"` for an unknown key, or ""."""
    known = set(flatten(reference))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    if near:
        return f"; did you mean {near[0]!r}?"
    leaf = name.rpartition(".")[2]
    by_leaf = {key.rpartition(".")[2]: key for key in known}
    near = difflib.get_close_matches(leaf, by_leaf, n=1, cutoff=0.7)
    if near:
        return f"; did you mean {by_leaf[near[0]]!r}?"
    return did_you_mean(name, known)


def has_key(config: ml_collections.ConfigDict, name: str) -> bool:
    """Return whether `config` has the key or section `name`, e.g. `section.key`."""
    for part in name.split("."):
        if not isinstance(config, ml_collections.ConfigDict) or part not in config:
            return False
        config = config[part]
    return True


def _nearest_multiples(value: int, of: int) -> str:
    below = value // of * of
    return f"{below} or {below + of}" if below else f"{of}"


def _require(condition: bool, message: str):
    if not condition:
        raise ConfigError(message)


def _comparable(value):
    return list(value) if isinstance(value, tuple) else value


def override_keys(argv: list[str]) -> Iterator[tuple[int, str]]:
    """Yield the position in `argv` and the key of every `--config.KEY` flag."""
    for i, argument in enumerate(argv):
        name = argument.lstrip("-").partition("=")[0]
        if argument.startswith("-") and name.removeprefix("no").startswith("config."):
            yield i, name.removeprefix("no").removeprefix("config.")
