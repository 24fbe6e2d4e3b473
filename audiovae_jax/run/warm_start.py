"""`config.init_from`: start from another run or model, ours or in PyTorch."""

import dataclasses
import json
import shlex
from collections.abc import Callable, Collection
from pathlib import Path

import flax.traverse_util
import jax
import ml_collections
import numpy as np

from audiovae_jax.config import configuration, resolve
from audiovae_jax.discriminators import EnCodecDiscriminator
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import CheckpointError, ConfigError, naming
from audiovae_jax.models.audio_vae import CONFIG_KEYS, AudioVAE
from audiovae_jax.persistence import init_source, saved_model
from audiovae_jax.persistence.checkpoint import ALIGNED, AVERAGED, VARIABLES, without_projection
from audiovae_jax.persistence.locate import OURS, locate_model, pinned
from audiovae_jax.storage import array_store, hub
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.torch_io import training
from audiovae_jax.training.optimizer import matches
from audiovae_jax.training.state import TrainState, trainable_params, with_initial
from audiovae_jax.training.step import Recipe

_KEY = "config.init_from"
# Prefixes of the keys that a torch file can set.
_ADOPTABLE = (
    *(f"model.{key}" for key in (*CONFIG_KEYS, "encoder_frozen")),
    *("data.channels", "data.sample_rate", "use_adversarial", "num_steps", "discriminator."),
    *("generator_update_every", "discriminator_update_every", "adversarial.", "kl."),
    *("optimizer.", "discriminator_optimizer."),
)
# The subset that describes the networks and not their training.
_OF_NETWORKS = (*(f"model.{key}" for key in CONFIG_KEYS), "data.channels", "data.sample_rate", "discriminator.")

# Arguments of the model that may differ with `config.init_reset`.
RESETTABLE = {"latent_dim", "in_channels"}

# Discriminator arguments that do not change its output. Linen adds the last two.
_NOT_COMPARED = ("dtype", "remat", "parent", "name")


class TorchReader:
    """Reads the torch file at `config.init_from` once for all steps of a run's start.

    Such a file can be hundreds of megabytes large.
    """

    def __init__(self):
        self._kept: dict[str, training.ImportedTraining] = {}

    def read(self, path: str) -> training.ImportedTraining:
        """Return the file's contents, and keep them until `forget`."""
        if path not in self._kept:
            with saved_model.at_hand(path) as local:
                self._kept = {path: training.read_training(local)}
        return self._kept[path]

    def forget(self):
        """Free the memory of the contents."""
        self._kept = {}


def pin_revision(config: ml_collections.ConfigDict, workdir: Path | BucketPath):
    """Set the commit of a model on the hub in `config.init_from`.

    So the run's config names it. A resumed run keeps its commit. If the config names another commit,
    `start.claim_workdir` reports that.

    Raises:
      CheckpointError: the hub cannot be reached, or has no such repository or revision.
    """
    path = config.init_from
    if not hub.is_hub(path):
        return
    earlier = (_settings_before(workdir) or {}).get("init_from")
    resumed = hub.is_hub(earlier) and hub.without_revision(earlier) == hub.without_revision(path)
    if resumed and path == hub.without_revision(path):
        config.init_from = earlier
        return
    try:
        with naming(path, _KEY):
            config.init_from = pinned(path)
    except CheckpointError:
        if not resumed:
            raise
        config.init_from = earlier


def adopt_settings(
    config: ml_collections.ConfigDict,
    given: Collection[str],
    workdir: Path | BucketPath,
    reader: TorchReader | None = None,
) -> list[str]:
    """Copy the settings of a torch file into the config, after `pin_revision`.

    The file is the one at `config.init_from`. The settings are architectures, learning rates and loss weights. Keys
    given on the command line keep their value. With `init_weights_only`, only the keys that describe the networks are
    set. Nothing is copied from our own runs and models. A resumed run whose torch file is no longer readable uses the
    settings of its workdir.

    Args:
      config: the config to change in place.
      given: keys that were set on the command line.
      workdir: the run's workdir.
      reader: keeps the file's contents for `train`.

    Returns:
      Lines that list the settings, for the user.

    Raises:
      CheckpointError: the file cannot be read.
      ConfigError: the config's key does not accept a setting.
    """
    pin_revision(config, workdir)
    path = config.init_from
    if path is None:
        return []
    reader, adopted = reader or TorchReader(), _adopted_before(workdir, path)
    try:
        with naming(path, _KEY):
            if _is_ours(path):
                return []
            overrides, origin = reader.read(path).overrides, f"the run in {path}"
    except CheckpointError:
        if adopted is None:
            raise
        overrides, origin = adopted, f"the run in {workdir}, since {path} can no longer be read"
    if adopted is not None:  # a resumed run restores its own arrays
        reader.forget()
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
                f"{path} has {key}={value!r}, which config.{key} does not accept ({error}); give --config.{key}=..."
            ) from error
        if before == value:
            agreeing.append(key)
        else:
            changed.append(f"  --config.{key}={value}  (the config had {before})")
    lines = [f"settings of {origin}; to keep the config's value of a key, give it on the command line:", *changed]
    return [*lines, f"  the same as in the config: {', '.join(agreeing)}"] if agreeing else lines


def require_same_model(config: ml_collections.ConfigDict, reader: TorchReader | None = None):
    """Check that a run can start from `config.init_from`.

    Of our own runs and models, only the description is read. A torch file is read completely.

    Args:
      config: the config of the new run.
      reader: keeps the contents of a torch file for `take_over`.

    Raises:
      CheckpointError: keys of `config.model` differ (the message lists them), or there is nothing usable at the path.
      ConfigError: it has completed `config.num_steps` already.
    """
    path = config.init_from
    with naming(path, _KEY):
        if _is_ours(path):
            described = init_source.describe(path)
            theirs, step = described.model, described.step
        else:
            imported = (reader or TorchReader()).read(path)
            theirs = {key: getattr(imported.audio_vae.model, key) for key in CONFIG_KEYS}
            step = imported.step
    theirs = {key: theirs.get(key, getattr(AudioVAE, key)) for key in CONFIG_KEYS}  # older runs lack the newer keys
    pairs = {key: (_plain(theirs[key]), _plain(config.model[key])) for key in CONFIG_KEYS}
    other = {key: pair for key, pair in pairs.items() if pair[0] != pair[1]}
    if other and other.keys() <= RESETTABLE and config.init_reset:
        _require_reset(config, theirs)
    elif other:
        lines = [f"  model.{key}: {there} there, {here} here" for key, (there, here) in other.items()]
        given = [f"--config.model.{key}={shlex.quote(str(there))}" for key, (there, _) in other.items()]
        raise CheckpointError(
            f"config.init_from={path}: its model differs from config.model:\n"
            + "\n".join(lines)
            + f"\nto start from it, give {' '.join(given)}"
            + (", or the parameters to re-initialise in --config.init_reset" if other.keys() <= RESETTABLE else "")
        )
    if not config.init_weights_only:
        require_steps_to_make(config, step or 0)


def _require_reset(config, theirs):
    """Raise CheckpointError unless `config.init_reset` covers changed shapes."""
    models = [AudioVAE(**{key: _plain(each[key]) for key in CONFIG_KEYS}) for each in (config.model, theirs)]
    here, there = (flax.traverse_util.flatten_dict(model.shapes()["params"]) for model in models)
    left = sorted(
        {
            "/".join(path[:-1])
            for path, array in here.items()
            if array.shape != there[path].shape and not any(matches(path, pattern) for pattern in config.init_reset)
        }
    )
    if left:
        raise CheckpointError(
            f"config.init_from={config.init_from}: parameters of other shapes there: {', '.join(left)}; add them to "
            f"config.init_reset={tuple(config.init_reset)}"
        )


def require_steps_to_make(config: ml_collections.ConfigDict, step: int):
    """Raise ConfigError if `config.init_from` is already at the last step.

    Args:
      config: the config of the new run.
      step: the step that `config.init_from` has reached.
    """
    if step >= config.num_steps:
        raise ConfigError(
            f"config.init_from={config.init_from} is already at step {step}; "
            f"raise config.num_steps={config.num_steps} to resume, or start at step 0 with its weights: "
            "--config.init_weights_only"
        )


def take_over(
    config: ml_collections.ConfigDict,
    recipe: Recipe,
    fresh: TrainState,
    sharding,
    say: Callable[[str], None],
    reader: TorchReader | None = None,
) -> TrainState:
    """Return `fresh` with the parts of `config.init_from` that fit.

    Args:
      config: a config whose `init_from` is one of our workdirs, a checkpoint in it, a saved model, or a torch,
        Lightning or safetensors file. With `init_weights_only`, the step and the optimizers stay as in `fresh`. A
        workdir's best checkpoint is then used instead of its newest.
      recipe: the recipe of the new run.
      fresh: the initial state of the new run.
      sharding: where to put the arrays.
      say: called with each line to report, for example the parts that were left out.
      reader: the reader that has read a torch file before; it forgets the contents.

    Raises:
      CheckpointError: there is nothing usable at the path.
    """
    path, weights_only = config.init_from, config.init_weights_only
    with naming(path, _KEY):
        if _is_ours(path):
            return _take_over_ours(config, recipe, fresh, sharding, say)
        reader = reader or TorchReader()
        imported = reader.read(path)
        reader.forget()
        notes = list(imported.notes)
        state = training.train_state(imported, recipe, fresh, notes, weights_only=weights_only, reset=config.init_reset)
    if fresh.alignment_params is not None:
        notes.append(f"{ALIGNED} is missing, and keeps its initial value")
    for note in notes:
        say(f"{path}: {note}")
    return jax.device_put(state, sharding)


def _take_over_ours(config, recipe, fresh, sharding, say):
    path, weights_only = config.init_from, config.init_weights_only
    described = init_source.describe(path)
    rate = described.sample_rate
    if rate is not None and rate != config.data.sample_rate:
        say(f"warning: {path} was trained at {rate} Hz, but config.data.sample_rate is {config.data.sample_rate}")
    optional = ["discriminator_params"] if fresh.discriminator_params is not None else []
    if not weights_only:
        optional = ["opt_state", *optional, *(["discriminator_opt_state"] if optional else [])]
        optional += [AVERAGED] if fresh.averaged_params is not None else []
    optional += [ALIGNED] if fresh.alignment_params is not None else []
    found = init_source.read(path, (*VARIABLES, *optional), best=weights_only)
    for reason in found.passed_over:
        say(f"warning: skipped a checkpoint: {reason}")
    step = 0 if weights_only or found.step is None else found.step
    parts = {"step": np.asarray(step, np.int32)}
    if config.init_reset:
        optional = [name for name in optional if name not in ("opt_state", AVERAGED)]
        found.parts["params"] = with_initial(found.parts["params"], fresh.params, config.init_reset)
        if array_store.like(fresh.latent_statistics, found.parts["latent_statistics"]) is None:
            found.parts["latent_statistics"] = fresh.latent_statistics
        say(f"config.init_reset={tuple(config.init_reset)}: these parameters and the optimizer's state are new")
    if "opt_state" in found.parts and array_store.like(fresh.alignment_params, found.parts.get(ALIGNED)) is None:
        ours, of_model = array_store.named_leaves(fresh.opt_state), without_projection(fresh.opt_state)
        of_projection = {name: leaf for name, leaf in ours.items() if name not in of_model}
        found.parts["opt_state"] = without_projection(found.parts["opt_state"]) | of_projection
    for name in (*VARIABLES, *optional):
        parts[name] = array_store.like(getattr(fresh, name), found.parts[name]) if name in found.parts else None
    if parts["params"] is None or parts["latent_statistics"] is None:
        raise CheckpointError("its arrays do not fit config.model, although the keys agree")
    other = _other_arguments(described.discriminator, recipe.discriminator)
    if other and parts.get("discriminator_params") is not None:
        say("\n  ".join([f"config.init_from={path}: its discriminator differs from config.discriminator:", *other]))
        parts["discriminator_params"] = None
    if "discriminator_opt_state" in parts and parts["discriminator_params"] is None:
        parts["discriminator_opt_state"] = None  # its moments belong to other weights
    if fresh.averaged_params is not None and parts.get(AVERAGED) is None:
        parts[AVERAGED] = trainable_params(parts["params"], recipe.optimizer.learning_rate_factors)
    for name in optional:
        if parts[name] is None:
            why = "does not fit" if name in found.parts else "is missing"
            say(f"config.init_from={path}: {name} {why}, and keeps its initial value")
    parts = {name: part for name, part in parts.items() if part is not None}
    what = ", ".join(name for name in parts if name != "step")
    of = f" ({found.origin})" if found.origin else ""
    counted = "the step and the optimizers are reset" if weights_only else f"step {step}"
    say(f"restored from {path}{of}: {counted}; {what}")
    return fresh.replace(**mesh.replicate(parts, sharding))


def _other_arguments(described, ours):
    """Return a line per argument that differs between two discriminators.

    Array shapes are not enough for this: some arguments leave no trace in them.

    Args:
      described: the config of the other run's discriminator, or None.
      ours: the new run's discriminator, or None.
    """
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
    # Arguments of disabled parts of the ensemble are not compared.
    unused = tuple(key.removeprefix("use") + "_" for key, pair in pairs.items() if pair == (False, False))
    return [
        f"discriminator.{key}: {there} there, {here} here"
        for key, (there, here) in pairs.items()
        if there != here and not f"_{key}".startswith(unused)
    ]


def _adopted_before(workdir, path):
    """Return the settings of an earlier session in `workdir` that used `path`.

    Only keys that a torch file can set are returned. Without such a session, returns None.
    """
    flat = _settings_before(workdir)
    if flat is None or flat.get("init_from") != path:
        return None
    return {key: value for key, value in flat.items() if key.startswith(_ADOPTABLE)}


def _settings_before(workdir):
    """Return the config of an earlier session in `workdir` by key; None without one."""
    try:
        return configuration.flatten(json.loads((workdir / "config.json").read_text()))
    except (OSError, ValueError, AttributeError):
        return None


def _is_the_ensemble(section):
    """Whether the config's discriminator is the PyTorch system's."""
    if resolve.TARGET not in section:
        return False
    return resolve.resolve(section[resolve.TARGET], "config.discriminator") is EnCodecDiscriminator


def _is_ours(path):
    """Whether to read `path` as our workdir or model, not as a torch file."""
    return locate_model(path).kind in OURS


def _plain(value):
    return tuple(value) if isinstance(value, (list, tuple)) else value
