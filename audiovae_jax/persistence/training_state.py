"""`load_training_state`: the state saved with a model, to resume its training."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from audiovae_jax.config import resolve
from audiovae_jax.discriminators import EnCodecDiscriminator
from audiovae_jax.errors import CheckpointError
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.persistence import saved_model
from audiovae_jax.persistence.checkpoint import Checkpoints, without_projection
from audiovae_jax.persistence.locate import TORCH, Kind, locate_model
from audiovae_jax.storage import array_store
from audiovae_jax.torch_io import training
from audiovae_jax.torch_io.discriminator import read_discriminator
from audiovae_jax.training.optimizer import FROZEN_ENCODER
from audiovae_jax.training.state import trainable_params


def load_training_state(
    path: str | Path, optimizer: optax.GradientTransformation | None = None, *, step: int | None = None
) -> dict[str, Any]:
    """Load the state needed to resume training.

    Args:
      path, step: see `load_model`.
      optimizer: the optimizer whose state to return. It must be the transform that the state was saved with, in the
        same order. For files of the PyTorch system, it is AdamW (`optimizer.AdamW`).

    Returns:
      A dict with

      * `epoch`, `global_step`: None if unknown.
      * `metadata`: the saved metadata.
      * `optimizer_state`: None without `optimizer`, or if no state was saved.
      * `discriminator`, `discriminator_params`: None if no discriminator was saved.

    Raises:
      CheckpointError: there is no model at `path`, it is damaged, or its optimizer state belongs to another optimizer.
    """
    state = training_state_of(saved_model.open_model(path, step=step, training=True), path, optimizer)
    return state | {"discriminator_params": jax.tree.map(jnp.asarray, state["discriminator_params"])}


def training_state_of(
    loaded: saved_model.LoadedModel, path: str | Path, optimizer: optax.GradientTransformation | None = None
) -> dict[str, Any]:
    """Return `load_training_state` for a model that was opened with `training=True`.

    Without `optimizer`, the arrays are numpy's, and no device is needed.
    """
    state = {
        "epoch": loaded.epoch,
        "global_step": loaded.global_step,
        "metadata": loaded.metadata,
        "optimizer_state": None,
        "discriminator": None,
        "discriminator_params": None,
    }
    if loaded.kind in TORCH:
        return state | _torch_training_state(path, loaded, optimizer)
    trees, described = _trees(path, loaded)
    if optimizer is not None and "optimizer" in trees:
        state["optimizer_state"] = _fill_optimizer(optimizer, loaded, trees["optimizer"], path)
    if described is not None and "discriminator" in trees:
        state["discriminator"] = resolve.build(described, f"{path}: discriminator")
        state["discriminator_params"] = trees["discriminator"]
    return state


class Beside(NamedTuple):
    """Training state that is stored with a model.

    Attributes:
      optimizer: whether there is an optimizer state.
      discriminator: dotted name of the discriminator's class; None without a discriminator.
      discriminator_parameters: number of its parameters.
    """

    optimizer: bool
    discriminator: str | None = None
    discriminator_parameters: int = 0


def beside(loaded: saved_model.LoadedModel, path: str | Path) -> Beside:
    """Describe the training state that is stored with an opened model.

    The discriminator's class need not be importable.

    Raises:
      CheckpointError: the training state cannot be read.
    """
    if loaded.kind in TORCH:
        with saved_model.at_hand(path) as local:
            imported = training.read_training(local)
        tensors, described = imported.discriminator, resolve.dotted_name(EnCodecDiscriminator)
        has_optimizer = imported.moments is not None
    else:
        if loaded.kind is Kind.SAVED_MODEL:
            loaded = saved_model.open_model(path, training=True)
        trees, section = _trees(path, loaded)
        tensors, described = trees.get("discriminator"), (section or {}).get(resolve.TARGET)
        has_optimizer = "optimizer" in trees
    return Beside(has_optimizer) if tensors is None else Beside(has_optimizer, described, count_parameters(tensors))


def _torch_training_state(path, loaded, optimizer):
    with saved_model.at_hand(path) as local:
        imported = training.read_training(local)
    state = {"global_step": imported.step}
    if optimizer is not None and imported.moments is not None:
        trainable = _trainable(loaded)
        filled = training.with_moments(optimizer.init(trainable), trainable, imported.moments)
        if filled is None:
            raise CheckpointError(": its optimizer's moments are for folded weights, or for another network", path=path)
        state["optimizer_state"] = filled
    if imported.discriminator is not None:
        arguments = imported.discriminator_arguments()
        state["discriminator"] = EnCodecDiscriminator(**arguments)
        state["discriminator_params"] = read_discriminator(imported.discriminator, state["discriminator"]).params
    return state


def _trees(path, loaded):
    """Return `(trees by name, discriminator's description)` stored with the model."""
    if loaded.kind is Kind.SAVED_MODEL:
        return loaded.training, loaded.discriminator
    checkpoints = Checkpoints(locate_model(path).checkpoints, read_only=True)
    config = checkpoints.config(loaded.global_step)
    names = ("opt_state", *(("discriminator_params",) if config["use_adversarial"] else ()))
    parts = checkpoints.parts(loaded.global_step, names)
    trees = {"optimizer": parts["opt_state"]}
    if "discriminator_params" in parts:
        trees["discriminator"] = parts["discriminator_params"]
    return trees, config["discriminator"] if "discriminator" in trees else None


def _fill_optimizer(optimizer, loaded, tree, path):
    """Return the state of `optimizer` with the saved arrays, matched by tree path."""
    tree = without_projection(tree)
    for params in (_trainable(loaded), loaded.variables["params"]):
        state = jax.eval_shape(optimizer.init, params)
        filled = array_store.like(state, tree)
        if filled is not None:
            return jax.tree.map(jnp.asarray, filled)
    wanted, saved = array_store.named_leaves(state), array_store.named_leaves(tree)
    missing = sorted(wanted.keys() ^ saved.keys()) or sorted(wanted)
    raise CheckpointError(
        f": the optimizer's state belongs to another transform; {missing[0]} and {len(missing) - 1} more arrays differ",
        path=path,
    )


def _trainable(loaded):
    return trainable_params(loaded.variables["params"], FROZEN_ENCODER if loaded.model.encoder_frozen else ())
