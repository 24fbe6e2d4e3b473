"""A run or a saved model of ours that a run goes on from: what it is of, and the parts of a train state in it."""

import contextlib
import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from audiovae_jax.errors import CheckpointError, as_checkpoint_error
from audiovae_jax.persistence import hosts, model_folder, places
from audiovae_jax.persistence.checkpoint import VARIABLES, Checkpoints, OutOfReachError
from audiovae_jax.storage.bucket_path import BucketPath

# What a saved model calls the parts of a train state that it may have besides the model.
_IN_SAVED_MODELS = {"opt_state": model_folder.OPTIMIZER, "discriminator_params": model_folder.DISCRIMINATOR}


@dataclasses.dataclass(frozen=True)
class Described:
    """What an earlier run or saved model is of.

    Attributes:
      model: the arguments of its `AudioVAE`, as JSON has them.
      sample_rate: of its audio, in Hz; None where that is not known.
    """

    model: dict[str, Any]
    sample_rate: int | None


@dataclasses.dataclass(frozen=True)
class Earlier:
    """What was read of an earlier run or saved model.

    Attributes:
      origin: which of its checkpoints it was, for the user; empty for a saved model.
      step: batches seen; None where that is not known.
      parts: by the names of `TrainState`'s fields, nested dicts of numpy arrays.
      passed_over: checkpoints that came first and are damaged, with the reason.
    """

    origin: str
    step: int | None
    parts: dict[str, Any]
    passed_over: tuple[str, ...] = ()


def describe(path: str) -> Described:
    """What the workdir, checkpoint or saved model at `path` is of; arrays are not looked at.

    Raises:
      CheckpointError: there is none, or its description cannot be read.
    """
    place = places.opened_path(path)
    if _is_saved_model(place):
        description = model_folder.settled(path, model_folder.read_description)
        return Described(description["config"], description["sample_rate"])
    with _opened(place) as (checkpoints, step):
        config = checkpoints.newest_config() if step is None else checkpoints.config(step)
        if config is None:
            raise CheckpointError(f"{path} holds no checkpoint whose description can be read")
        with as_checkpoint_error(f"{path}: its config describes no model"):
            return Described(dict(config["model"]), config["data"]["sample_rate"])


def read(path: str, wanted: Collection[str], *, best: bool = False) -> Earlier:
    """The parts `wanted` of the state at `path`, as far as they are there; every process of a run has to call it.

    Args:
      path: a workdir, one of its checkpoints, or a saved model.
      wanted: fields of `TrainState`; the model's own must be there.
      best: of a workdir's checkpoints, the best by validation loss, as `load_model` takes it; else the newest that
        is whole.

    Raises:
      CheckpointError: nothing there is whole.
    """
    place = places.opened_path(path)
    if _is_saved_model(place):
        return model_folder.settled(path, lambda place: _of_saved_model(place, wanted))
    with _opened(place) as (checkpoints, step):
        reasons = []
        order = [step] if step is not None else checkpoints.best_first() if best else checkpoints.steps()[::-1]
        for candidate in hosts.of_first(order):
            found = reason = None
            try:
                found = _of_checkpoint(checkpoints, candidate, wanted)
            except OutOfReachError:  # it may be whole
                raise
            except CheckpointError as error:
                reason = str(error)
            reason = hosts.any_reason(reason)  # what any process cannot read, none takes
            if reason is None:
                return dataclasses.replace(found, passed_over=tuple(reasons))
            reasons.append(reason)
    raise CheckpointError("\n".join(reasons) or f"{path} holds no finished checkpoint; give another workdir")


def _is_saved_model(place: Path | BucketPath) -> bool:
    return (place / model_folder.DESCRIPTION).is_file()


@contextlib.contextmanager
def _opened(place) -> Iterator[tuple[Checkpoints, int | None]]:
    folder, step = places.locate(place)
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
