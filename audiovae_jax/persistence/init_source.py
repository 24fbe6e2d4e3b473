"""Reads the workdir or saved model that a run is initialized from."""

import dataclasses
from collections.abc import Collection
from typing import Any

from audiovae_jax.distributed import agreement
from audiovae_jax.errors import CheckpointError, as_checkpoint_error
from audiovae_jax.persistence import model_folder
from audiovae_jax.persistence.checkpoint import ALIGNED, AVERAGED, VARIABLES, Checkpoints, OutOfReachError, evaluated
from audiovae_jax.persistence.locate import Kind, locate_model

# Names in a saved model of the optional parts of a train state.
_IN_SAVED_MODELS = {"opt_state": model_folder.OPTIMIZER, "discriminator_params": model_folder.DISCRIMINATOR}


@dataclasses.dataclass(frozen=True)
class Described:
    """The description of an earlier run or saved model.

    Attributes:
      model: the arguments of its `AudioVAE`, as JSON values.
      sample_rate: sample rate of its audio in Hz; None if unknown.
      discriminator: dotted name and arguments of the discriminator's class; None without a discriminator.
      step: step of the checkpoint that the path names, else of the newest; None if unknown.
    """

    model: dict[str, Any]
    sample_rate: int | None
    discriminator: dict[str, Any] | None
    step: int | None


@dataclasses.dataclass(frozen=True)
class Earlier:
    """The parts of a train state that were read from an earlier run or saved model.

    Attributes:
      origin: the checkpoint's name, for messages; empty for a saved model.
      step: number of batches seen; None if unknown.
      parts: nested dicts of numpy arrays, by field of `TrainState`.
      passed_over: reasons why damaged checkpoints were skipped.
    """

    origin: str
    step: int | None
    parts: dict[str, Any]
    passed_over: tuple[str, ...] = ()


def describe(path: str) -> Described:
    """Describe a workdir, checkpoint or saved model without reading arrays.

    Raises:
      CheckpointError: there is no model at `path`, or its description cannot be read.
    """
    place = locate_model(path)
    if place.kind is Kind.SAVED_MODEL:
        description = model_folder.settled(path, model_folder.read_description)
        names = ("config", "sample_rate", "discriminator", "global_step")
        return Described(*(description[name] for name in names))
    checkpoints = Checkpoints(place.checkpoints, read_only=True)
    step = checkpoints.newest_described() if place.step is None else place.step
    if step is None:
        raise CheckpointError(" contains no checkpoint with a readable description", path=path)
    config = checkpoints.config(step)
    with as_checkpoint_error(": its config does not describe a model", path):
        discriminator = dict(config["discriminator"]) if config["use_adversarial"] else None
        return Described(dict(config["model"]), config["data"]["sample_rate"], discriminator, step)


def read(path: str, wanted: Collection[str], *, best: bool = False) -> Earlier:
    """Read the parts `wanted` of the state at `path`, if it has them.

    Every process of a run must call this.

    Args:
      path: a workdir, one of its checkpoints, or a saved model.
      wanted: fields of `TrainState`. The model's own fields must exist.
      best: use the best checkpoint of a workdir by validation loss, with averaged parameters if there are any, as
        `load_model` does. By default, the newest intact one is used.

    Raises:
      CheckpointError: nothing intact was found.
    """
    place = locate_model(path)
    if place.kind is Kind.SAVED_MODEL:
        return model_folder.settled(path, lambda path: _of_saved_model(path, wanted))
    checkpoints = Checkpoints(place.checkpoints, read_only=True)
    if place.step is not None:
        order = [place.step]
    else:
        order = agreement.of_first(checkpoints.best_first() if best else checkpoints.steps()[::-1])
    reasons = []
    for step in order:
        found = error = None
        try:
            found = _of_checkpoint(checkpoints, step, {*wanted, AVERAGED} if best else wanted)
            if best:
                found = dataclasses.replace(found, parts=evaluated(found.parts))
        except OutOfReachError:  # it may be intact
            raise
        except CheckpointError as caught:
            error = caught
        reason = agreement.any_reason(error and str(error))  # skipped by all processes if one cannot read it
        if reason is None:
            return dataclasses.replace(found, passed_over=tuple(reasons))
        if place.step is not None:
            raise error or CheckpointError(reason)
        reasons.append(reason)
    raise CheckpointError(" contains no intact checkpoint", path=path, detail="\n".join(reasons) or None)


def _of_checkpoint(checkpoints, step, wanted):
    config = checkpoints.config(step)
    with as_checkpoint_error(f"checkpoint {step}: its config does not describe its contents"):
        adversarial = config["use_adversarial"]
    left_out = tuple(name for name in (AVERAGED, ALIGNED) if not checkpoints.has(step, name))
    names = tuple(
        name for name in wanted if name not in left_out and (adversarial or not name.startswith("discriminator_"))
    )
    return Earlier(f"checkpoint {step}", step, checkpoints.parts(step, names))


def _of_saved_model(path, wanted):
    description = model_folder.read_description(path)
    names = {field: tree for field, tree in _IN_SAVED_MODELS.items() if field in wanted}
    trees = model_folder.read_trees(path, description, (model_folder.MODEL, *names.values()))
    with as_checkpoint_error(" is not a complete model", path):
        parts = {name: trees[model_folder.MODEL][name] for name in VARIABLES}
    parts |= {field: trees[tree] for field, tree in names.items() if tree in trees}
    return Earlier("", description["global_step"], parts)
