"""Reads the workdir or saved model that a run is initialized from."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from audiovae_jax.distributed import agreement
from audiovae_jax.errors import CheckpointError, as_checkpoint_error
from audiovae_jax.persistence import locate, model_folder
from audiovae_jax.persistence.checkpoint import VARIABLES, Checkpoints, OutOfReachError
from audiovae_jax.storage.bucket_path import BucketPath

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
    place = locate.opened_path(path)
    if _is_saved_model(place):
        description = model_folder.settled(path, model_folder.read_description)
        names = ("config", "sample_rate", "discriminator", "global_step")
        return Described(*(description[name] for name in names))
    with _opened(place) as (checkpoints, step):
        step = checkpoints.newest_described() if step is None else step
        if step is None:
            raise CheckpointError(f"{path} holds no checkpoint whose description can be read")
        config = checkpoints.config(step)
        with as_checkpoint_error(f"{path}: its config describes no model"):
            discriminator = dict(config["discriminator"]) if config["use_adversarial"] else None
            return Described(dict(config["model"]), config["data"]["sample_rate"], discriminator, step)


def read(path: str, wanted: Collection[str], *, best: bool = False) -> Earlier:
    """Read the parts `wanted` of the state at `path`, if it has them.

    Every process of a run must call this.

    Args:
      path: a workdir, one of its checkpoints, or a saved model.
      wanted: fields of `TrainState`. The model's own fields must exist.
      best: take the best checkpoint of a workdir by validation loss, as `load_model` does. By default, the newest
        intact one is taken.

    Raises:
      CheckpointError: nothing intact was found.
    """
    place = locate.opened_path(path)
    if _is_saved_model(place):
        return model_folder.settled(path, lambda place: _of_saved_model(place, wanted))
    with _opened(place) as (checkpoints, step):
        reasons = []
        order = [step] if step is not None else checkpoints.best_first() if best else checkpoints.steps()[::-1]
        for candidate in agreement.of_first(order):
            found = reason = None
            try:
                found = _of_checkpoint(checkpoints, candidate, wanted)
            except OutOfReachError:  # it may be intact
                raise
            except CheckpointError as error:
                reason = str(error)
            reason = agreement.any_reason(reason)  # skipped by all processes if one cannot read it
            if reason is None:
                return dataclasses.replace(found, passed_over=tuple(reasons))
            reasons.append(reason)
    raise CheckpointError("\n".join(reasons) or f"{path} holds no finished checkpoint; give another workdir")


def _is_saved_model(place: Path | BucketPath) -> bool:
    return (place / model_folder.DESCRIPTION).is_file()


@contextlib.contextmanager
def _opened(place) -> Iterator[tuple[Checkpoints, int | None]]:
    folder, step = locate.locate(place)
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        yield checkpoints, step
    finally:
        checkpoints.close()


def _of_checkpoint(checkpoints, step, wanted):
    config = checkpoints.config(step)
    with as_checkpoint_error(f"checkpoint {step}: its config does not say what it holds"):
        adversarial = config["use_adversarial"]
    names = tuple(name for name in wanted if adversarial or not name.startswith("discriminator_"))
    return Earlier(f"checkpoint {step}", step, checkpoints.parts(step, names))


def _of_saved_model(path, wanted):
    description = model_folder.read_description(path)
    names = {field: tree for field, tree in _IN_SAVED_MODELS.items() if field in wanted}
    trees = model_folder.read_trees(path, description, (model_folder.MODEL, *names.values()))
    with as_checkpoint_error(f"{path} is no whole model"):
        parts = {name: trees[model_folder.MODEL][name] for name in VARIABLES}
    parts |= {field: trees[tree] for field, tree in names.items() if tree in trees}
    return Earlier("", description["global_step"], parts)
