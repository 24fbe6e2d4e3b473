"""The step and what goes with it as programs over a mesh: training, the benchmark and the plan build the same here.

Each takes a recipe's numbers as its last argument (`scalars`), so that a recipe with others is the same program.

The numbers of a recipe that a compiled step takes as arguments: another one compiles nothing anew.

Which they are is said here alone (`_FIELDS`, and the weights of the losses): weights, warm-ups, learning
rates, the length of the run and the seed. What else a recipe has shapes the arithmetic, and is part of the
program: the moments' decay, weight decay, clipping, free bits, and how often a network is updated.

A weight of exactly 0 is part of the program too: the way back from its loss is not computed at all, and only
the loss's value is reported. So a weight that becomes 0, or is 0 no more, is another program.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiovae_jax.distributed import mesh
from audiovae_jax.distributed.mesh import AXIS
from audiovae_jax.training import diagnosis, step
from audiovae_jax.training.state import TrainState, create_train_state
from audiovae_jax.training.step import Recipe

# By part of the recipe. Names that end in `weight` are weights, which may be switched off.
_SCHEDULE = ("num_steps", "learning_rate", "final_learning_rate", "warmup_steps", "first_step")
_FIELDS = {
    "kl": ("weight", "warmup_steps"),
    "adversarial": ("adversarial_weight", "feature_matching_weight"),
    "optimizer": _SCHEDULE,
    "discriminator_optimizer": _SCHEDULE,
}

Scalars = dict  # of a part's name to its numbers by name; a pytree


def scalars_of(recipe: Recipe) -> Scalars:
    """The numbers, on the host: float32, and a uint32 seed."""
    scalars = {
        part: {
            name: np.float32(value)
            for name in names
            if (value := getattr(getattr(recipe, part), name)) or not name.endswith("weight")
        }
        for part, names in _FIELDS.items()
        if getattr(recipe, part) is not None
    }
    scalars["losses"] = {name: np.float32(weight) for name, weight, _ in recipe.losses.terms if weight}
    scalars["seed"] = np.uint32(recipe.seed)
    return scalars


def with_scalars(recipe: Recipe, scalars: Scalars) -> Recipe:
    """The recipe with these numbers, which may be traced, in the place of its own."""
    weights = scalars["losses"]
    terms = tuple((name, weights.get(name, weight), fn) for name, weight, fn in recipe.losses.terms)
    parts = {part: dataclasses.replace(getattr(recipe, part), **scalars[part]) for part in _FIELDS if part in scalars}
    losses = dataclasses.replace(recipe.losses, terms=terms)
    return dataclasses.replace(recipe, losses=losses, seed=scalars["seed"], **parts)


def map_step(recipe: Recipe, devices: Mesh, adversarial: bool) -> jax.stages.Wrapped:
    """`(state, audio, scalars) -> (state, metrics)`, jitted over the mesh.

    Args:
      recipe: what to compute.
      devices: a mesh along `data`.
      adversarial: whether the discriminator takes part.
    """
    per_device = functools.partial(step.train_step, adversarial=adversarial)
    return mesh.map_devices(_with_numbers(per_device, recipe), devices, (P(), P()), donate_argnums=0)


def map_validation(recipe: Recipe, devices: Mesh) -> jax.stages.Wrapped:
    """`(variables, audio, scalars) -> (metrics, reconstruction)`, jitted over the mesh."""
    return mesh.map_devices(_with_numbers(step.validation_step, recipe), devices, (P(), P(AXIS)))


def map_diagnosis(recipe: Recipe, devices: Mesh, adversarial: bool) -> jax.stages.Wrapped:
    """`(state, audio, scalars) -> figures`, jitted over the mesh."""
    per_device = functools.partial(diagnosis.diagnose, adversarial=adversarial)
    return mesh.map_devices(_with_numbers(per_device, recipe), devices, P())


def place_scalars(recipe: Recipe, devices: Mesh) -> Scalars:
    """The recipe's numbers on every device; every process has to have the same recipe."""
    return mesh.replicate(scalars_of(recipe), mesh.replicated(devices))


def abstract_scalars(recipe: Recipe, devices: Mesh) -> Scalars:
    """The shapes of the recipe's numbers on every device."""
    return _abstract(scalars_of(recipe), devices)


def abstract_state(recipe: Recipe, devices: Mesh, audio_shape: tuple[int, int, int]) -> TrainState:
    """The shapes of the train state on every device, enough to lower the step and to restore a checkpoint.

    Args:
      recipe: what to compute.
      devices: a mesh along `data`.
      audio_shape: any `(B, T, C)` that the networks accept.
    """
    return _abstract(jax.eval_shape(functools.partial(create_train_state, recipe, audio_shape)), devices)


def abstract_batch(devices: Mesh, shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    """A global batch `(B, T, C)` of audio, split over the devices."""
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(devices, P(AXIS)))


def _abstract(tree, devices):
    everywhere = mesh.replicated(devices)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)


def _with_numbers(per_device, recipe):
    def bound(state, audio, scalars):
        return per_device(state, audio, recipe=with_scalars(recipe, scalars))

    return bound
