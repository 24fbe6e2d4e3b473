"""`config.init_from`: going on from another run or model, of ours or of the PyTorch system."""

import contextlib
import dataclasses
import json
import shlex
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import ml_collections
import numpy as np

from audiovae_jax.config import configuration, resolve
from audiovae_jax.discriminators import EnCodecDiscriminator
from audiovae_jax.errors import CheckpointError, ConfigError
from audiovae_jax.persistence import earlier, places, saved_model
from audiovae_jax.persistence.checkpoint import VARIABLES
from audiovae_jax.storage import array_store
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.torch_io import training
from audiovae_jax.torch_io.audio_vae import CONFIG_KEYS
from audiovae_jax.training import mesh
from audiovae_jax.training.state import TrainState
from audiovae_jax.training.step import Recipe

# Beginnings of the keys that a torch file can set.
_ADOPTABLE = (
    *(f"model.{key}" for key in (*CONFIG_KEYS, "encoder_frozen")),
    *("data.channels", "data.sample_rate", "use_adversarial", "num_steps", "discriminator."),
    *("generator_update_every", "discriminator_update_every", "adversarial.", "kl."),
    *("optimizer.", "discriminator_optimizer."),
)
# Those of them that say what its networks are, and not how they were trained.
_OF_NETWORKS = (*(f"model.{key}" for key in CONFIG_KEYS), "data.channels", "data.sample_rate", "discriminator.")

# Arguments of a discriminator that do not change what it computes; the last two are linen's own.
_NOT_COMPARED = ("dtype", "remat", "parent", "name")


def adopt_settings(config: ml_collections.ConfigDict, given: Collection[str], workdir: Path | BucketPath) -> list[str]:
    """Set what a torch file at `config.init_from` tells of its run: architectures, rates, weights.

    What the command line gives stands, and with `init_weights_only` all that is not of the networks themselves.
    Runs of ours have their config beside them and are not looked at. A run that has begun has what it adopted in
    its workdir, and goes on without the file.

    Args:
      config: changed in place.
      given: the keys that were set on the command line.
      workdir: of the run.

    Returns:
      A line per setting, for the user to see.

    Raises:
      CheckpointError: the file cannot be read.
      ConfigError: a setting does not fit the config's key.
    """
    path = config.init_from
    if path is None or _is_ours(path):
        return []
    try:
        imported = _read_once(path)
        if _adopted_before(workdir, path) is None:  # a run that goes on has arrays of its own
            _waiting[path] = imported
        overrides, origin = imported[1].overrides, f"the run in {path}"
    except CheckpointError:
        overrides, origin = _adopted_before(workdir, path), f"the run in {workdir}, since {path} cannot be read again"
        if overrides is None:
            with _named(path):
                raise
    ensemble = _is_the_ensemble(config.discriminator)
    changed, agreeing = [], []
    for key, value in overrides.items():
        if key in given or not configuration.has_key(config, key):
            continue
        if config.init_weights_only and not key.startswith(_OF_NETWORKS):
            continue
        section, _, name = key.rpartition(".")
        if section == "discriminator" and not ensemble:
            continue
        values = config[section] if section else config
        before = values[name]
        if isinstance(before, int) and isinstance(value, float) and value.is_integer():
            value = int(value)
        try:
            values[name] = tuple(value) if isinstance(value, list) else value
        except (TypeError, ValueError) as error:
            raise ConfigError(
                f"{path} has {key}={value!r}, which config.{key} does not take ({error}); give --config.{key}=..."
            ) from error
        if before == value:
            agreeing.append(key)
        else:
            changed.append(f"  --config.{key}={value}  (the config had {before})")
    lines = [f"settings of {origin}; to keep the config's, give the key on the command line:", *changed]
    return [*lines, f"  and as the config has them: {', '.join(agreeing)}"] if agreeing else lines


def require_same_model(config: ml_collections.ConfigDict):
    """Refuse what `config.init_from` names, if a run cannot go on from it; only descriptions are read for that.

    Raises:
      CheckpointError: the keys of `config.model` that differ, or there is nothing that can be gone on from.
      ConfigError: it has made all of `config.num_steps` already.
    """
    path = config.init_from
    with _named(path):
        if _is_ours(path):
            described = earlier.describe(path)
            theirs, step = described.model, described.step
        else:
            _waiting[path] = _read_once(path)
            imported = _waiting[path][1]
            theirs = {key: getattr(imported.audio_vae.model, key) for key in CONFIG_KEYS}
            step = imported.step
    pairs = {key: (_plain(theirs[key]), _plain(config.model[key])) for key in CONFIG_KEYS if key in theirs}
    other = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    if other:
        lines = [f"  model.{key}: {there} there, {here} here" for key, (there, here) in other.items()]
        given = [f"--config.model.{key}={shlex.quote(str(there))}" for key, (there, _) in other.items()]
        raise CheckpointError(
            f"config.init_from={path}: its model is not that of config.model:\n"
            + "\n".join(lines)
            + f"\nto go on from it, give {' '.join(given)}"
        )
    if not config.init_weights_only:
        require_steps_to_make(config, step or 0)


def require_steps_to_make(config: ml_collections.ConfigDict, step: int):
    """Raise ConfigError if what `config.init_from` names is at the last step already."""
    if step >= config.num_steps:
        raise ConfigError(
            f"config.init_from={config.init_from} is at step {step} already; "
            f"raise config.num_steps={config.num_steps} to go on, or begin anew with its weights alone: "
            "--config.init_weights_only"
        )


def take_over(
    config: ml_collections.ConfigDict, recipe: Recipe, fresh: TrainState, sharding, say: Callable[[str], None]
) -> TrainState:
    """The state of another run, as far as it fits; `say` is told what was left out.

    Args:
      config: its `init_from` is a workdir of ours, one of its checkpoints, a saved model, or a torch, Lightning or
        safetensors file. With `init_weights_only`, step and optimizers stay as they are in `fresh`, and of a workdir
        the best checkpoint is taken in place of the newest.
      recipe: of the run that begins.
      fresh: its initial state.
      sharding: where to put the arrays.
      say: takes a line at a time.

    Raises:
      CheckpointError: there is nothing there that can be taken over.
    """
    path, weights_only = config.init_from, config.init_weights_only
    if _is_ours(path):
        with _named(path):
            return _take_over_ours(config, recipe, fresh, sharding, say)
    _, imported = _read_once(path)
    _waiting.clear()
    notes = list(imported.notes)
    with _named(path):
        state = training.train_state(imported, recipe, fresh, notes, weights_only=weights_only)
    for note in notes:
        say(f"{path}: {note}")
    return jax.device_put(state, sharding)


def _take_over_ours(config, recipe, fresh, sharding, say):
    path, weights_only = config.init_from, config.init_weights_only
    described = earlier.describe(path)
    rate = described.sample_rate
    if rate is not None and rate != config.data.sample_rate:
        say(f"warning: {path} is of {rate} Hz, and config.data.sample_rate is {config.data.sample_rate}")
    optional = ["discriminator_params"] if fresh.discriminator_params is not None else []
    if not weights_only:
        optional = ["opt_state", *optional, *(["discriminator_opt_state"] if optional else [])]
    found = earlier.read(path, (*VARIABLES, *optional), best=weights_only)
    for reason in found.passed_over:
        say(f"warning: passed over {reason}")
    step = 0 if weights_only or found.step is None else found.step
    parts = {"step": np.asarray(step, np.int32)}
    for name in (*VARIABLES, *optional):
        parts[name] = array_store.like(getattr(fresh, name), found.parts[name]) if name in found.parts else None
    if parts["params"] is None or parts["latent_statistics"] is None:
        raise CheckpointError("its arrays are not those of config.model, though its keys are")
    other = _other_arguments(described.discriminator, recipe.discriminator)
    if other and parts.get("discriminator_params") is not None:
        say("\n  ".join([f"config.init_from={path}: its discriminator is not that of config.discriminator:", *other]))
        parts["discriminator_params"] = None
    if "discriminator_opt_state" in parts and parts["discriminator_params"] is None:
        parts["discriminator_opt_state"] = None  # it is of other weights
    for name in optional:
        if parts[name] is None:
            why = "does not fit" if name in found.parts else "is not in it"
            say(f"config.init_from={path}: {name} {why}, and starts afresh")
    parts = {name: part for name, part in parts.items() if part is not None}
    what = ", ".join(name for name in parts if name != "step")
    of = f" ({found.origin})" if found.origin else ""
    counted = "the step and the optimizers begin anew" if weights_only else f"step {step}"
    say(f"taken over from {path}{of}: {counted}; {what}")
    return fresh.replace(**mesh.replicate(parts, sharding))


def _other_arguments(described, ours):
    """How the discriminator of a description differs from `ours`, a line per key; shapes alone do not tell."""
    if described is None or ours is None:
        return []
    name = described.get(resolve.TARGET)
    try:
        theirs = resolve.build(described, "its discriminator")
    except ConfigError as error:
        return [str(error)]
    if type(theirs) is not type(ours):
        return [f"discriminator.{resolve.TARGET}: {name} there, {resolve.dotted_name(type(ours))} here"]
    pairs = {
        field.name: (_plain(getattr(theirs, field.name)), _plain(getattr(ours, field.name)))
        for field in dataclasses.fields(ours)
        if field.name not in _NOT_COMPARED
    }
    # Of the ensemble's parts that take no part, nothing counts.
    unused = tuple(key.removeprefix("use") + "_" for key, pair in pairs.items() if pair == (False, False))
    return [
        f"discriminator.{key}: {there} there, {here} here"
        for key, (there, here) in pairs.items()
        if there != here and not f"_{key}".startswith(unused)
    ]


# What `adopt_settings` has read, for `take_over`: such a file has hundreds of megabytes.
_waiting: dict = {}


def _read_once(path):
    """`(when it was changed, its contents)` of a torch file."""
    place = places.opened_path(path)
    try:
        changed = place.version() if isinstance(place, BucketPath) else place.stat().st_mtime_ns
    except OSError:
        changed = None
    if path in _waiting and _waiting[path][0] == changed:
        return _waiting[path]
    with saved_model.at_hand(place) as local:
        return changed, training.read_training(local)


def _adopted_before(workdir, path):
    """The keys that a file can set, of a run that has begun in `workdir` from `path`; None if there is none."""
    try:
        flat = configuration.flatten(json.loads((workdir / "config.json").read_text()))
    except (OSError, ValueError, AttributeError):
        return None
    if flat.get("init_from") != path:
        return None
    return {key: value for key, value in flat.items() if key.startswith(_ADOPTABLE)}


def _is_the_ensemble(section):
    """Whether the config's discriminator is the one that the PyTorch system has."""
    if resolve.TARGET not in section:
        return False
    return resolve.resolve(section[resolve.TARGET], "config.discriminator") is EnCodecDiscriminator


def _is_ours(path):
    """Whether it is a folder: a workdir, a checkpoint or a saved model; all else is of the PyTorch system."""
    return places.opened_path(path).is_dir()


@contextlib.contextmanager
def _named(path):
    """Errors say of which key they are."""
    try:
        yield
    except CheckpointError as error:
        text = str(error)
        raise CheckpointError(f"config.init_from={text if text.startswith(path) else f'{path}: {text}'}") from error


def _plain(value):
    return tuple(value) if isinstance(value, (list, tuple)) else value
