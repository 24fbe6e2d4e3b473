"""`config.init_from`: going on from another run, of ours or of the PyTorch system."""

import functools
import json
from collections.abc import Callable, Collection
from pathlib import Path

import jax
import ml_collections

from audiovae_jax.config import build, configuration, resolve
from audiovae_jax.discriminators import EnCodecDiscriminator
from audiovae_jax.errors import CheckpointError, ConfigError
from audiovae_jax.persistence import places, saved_model
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.torch_io import training
from audiovae_jax.torch_io.audio_vae import CONFIG_KEYS
from audiovae_jax.training.state import TrainState, create_train_state
from audiovae_jax.training.step import Recipe

# Beginnings of the keys that a torch file can set.
_ADOPTABLE = (
    *(f"model.{key}" for key in (*CONFIG_KEYS, "encoder_frozen")),
    *("data.channels", "data.sample_rate", "use_adversarial", "num_steps", "discriminator."),
    *("generator_update_every", "discriminator_update_every", "adversarial.", "kl."),
    *("optimizer.", "discriminator_optimizer."),
)


def adopt_settings(config: ml_collections.ConfigDict, given: Collection[str], workdir: Path | BucketPath) -> list[str]:
    """Set what a torch file at `config.init_from` tells of its run: architectures, rates, weights.

    What the command line gives stands. Runs of ours have their config beside them and are not looked
    at. A run that has begun has what it adopted in its workdir, and goes on without the file.

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
    if path is None or places.opened_path(path).is_dir():
        return []
    try:
        imported = _read_once(path)
        if _adopted_before(workdir, path) is None:  # a run that goes on has arrays of its own
            _waiting[path] = imported
        overrides, origin = imported[1].overrides, f"the run in {path}"
    except CheckpointError:
        overrides, origin = _adopted_before(workdir, path), f"the run in {workdir}, since {path} cannot be read again"
        if overrides is None:
            raise
    ensemble = _is_the_ensemble(config.discriminator)
    changed, agreeing = [], []
    for key, value in overrides.items():
        if key in given or not configuration.has_key(config, key):
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


def take_over(path: str, recipe: Recipe, fresh: TrainState, sharding, say: Callable[[str], None]) -> TrainState:
    """The state of another run, as far as it fits; `say` is told what was left out.

    Args:
      path: a workdir of ours, one of its checkpoints, or a torch, Lightning or safetensors file.
      recipe: of the run that begins.
      fresh: its initial state.
      sharding: where to put the arrays.
      say: takes a line at a time.

    Raises:
      CheckpointError: there is nothing there that can be taken over.
    """
    if not places.opened_path(path).is_dir():
        _, imported = _read_once(path)
        _waiting.clear()
        notes = list(imported.notes)
        try:
            state = training.train_state(imported, recipe, fresh, notes)
        except CheckpointError as error:
            raise CheckpointError(f"config.init_from={path}: {error}") from None
        for note in notes:
            say(f"{path}: {note}")
        return jax.device_put(state, sharding)
    folder, from_step = places.locate(path)
    source = Checkpoints(folder, read_only=True)
    try:
        old = _newest_whole(source, folder, from_step, sharding, say)
    finally:
        source.close()
    if _shapes(old.params) != _shapes(fresh.params):
        raise CheckpointError(
            f"config.init_from={path}: its model is not that of config.model; give both the same keys"
        )
    parts = {"step": old.step, "params": old.params, "latent_statistics": old.latent_statistics}
    for names in (("opt_state",), ("discriminator_params", "discriminator_opt_state")):
        if all(_shapes(getattr(old, name)) == _shapes(getattr(fresh, name)) for name in names):
            parts |= {name: getattr(old, name) for name in names}
        else:
            say(f"config.init_from={path}: its {' and '.join(names)} does not fit and starts afresh")
    say(f"taken over from {path}: step {int(old.step)}, {', '.join(parts)}")
    return fresh.replace(**parts)


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


def _newest_whole(source: Checkpoints, folder, step, sharding, say) -> TrainState:
    """The state at `step` of another run, by its own config; with None, of its newest checkpoint that is whole."""
    reasons = []
    for candidate in source.steps()[::-1] if step is None else [step]:
        try:
            config = ml_collections.ConfigDict(source.config(candidate), convert_dict=True)
            create = functools.partial(create_train_state, build.build_recipe(config), build.example_shape(config))
            state = source.restore(jax.eval_shape(create), sharding, candidate).state
        except CheckpointError as error:
            reasons.append(str(error))
            continue
        for reason in reasons:
            say(f"warning: passed over {reason}")
        return state
    raise CheckpointError("\n".join(reasons) or f"{folder} holds no finished checkpoint; give another workdir")


def _shapes(tree):
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
