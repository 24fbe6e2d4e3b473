"""The training step, validation and diagnosis as jitted programs over a mesh.

Training, the benchmark and the planner build them here. The last argument of each program is the recipe's numbers,
`scalars`, so that changing one compiles nothing. These are loss weights, warm-ups, learning rates, the length of the
run and the seed. Everything else in a recipe is part of the program: Adam's decay rates, weight decay, clipping, free
bits, update intervals.

A weight of exactly 0 is part of the program too: its loss is reported, but has no backward pass.
"""

import dataclasses
import functools
from typing import Any

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

# Scalar fields by part of the recipe. A name that ends in `weight` is a weight, whose loss is disabled by 0.
_SCHEDULE = ("num_steps", "learning_rate", "final_learning_rate", "warmup_steps", "first_step")
_FIELDS = {
    "kl": ("weight", "warmup_steps"),
    "alignment": ("weight",),
    "adversarial": ("adversarial_weight", "feature_matching_weight", "r1_weight", "r2_weight"),
    "optimizer": _SCHEDULE,
    "discriminator_optimizer": _SCHEDULE,
}

Scalars = dict  # {part: {field: number}}, a pytree


def scalars_of(recipe: Recipe) -> Scalars:
    """Return the recipe's numbers on the host: float32, and a uint32 seed."""
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
    """Return the recipe with its numbers replaced by `scalars`, which may be traced."""
    weights = scalars["losses"]
    terms = tuple((name, weights.get(name, weight), fn) for name, weight, fn in recipe.losses.terms)
    parts = {part: dataclasses.replace(getattr(recipe, part), **scalars[part]) for part in _FIELDS if part in scalars}
    losses = dataclasses.replace(recipe.losses, terms=terms)
    return dataclasses.replace(recipe, losses=losses, seed=scalars["seed"], **parts)


def map_step(recipe: Recipe, devices: Mesh, adversarial: bool) -> jax.stages.Wrapped:
    """Jit `(state, audio, scalars) -> (state, metrics)` over the mesh.

    Args:
      recipe: what to compute.
      devices: a mesh along `data`.
      adversarial: whether the discriminator takes part.
    """
    per_device = functools.partial(step.train_step, adversarial=adversarial)
    return mesh.map_devices(_with_numbers(per_device, recipe), devices, (P(), P()), donate_argnums=0)


def map_validation(recipe: Recipe, devices: Mesh) -> jax.stages.Wrapped:
    """Jit `(variables, audio, scalars) -> (metrics, reconstruction)` over the mesh."""
    return mesh.map_devices(_with_numbers(step.validation_step, recipe), devices, (P(), P(AXIS)))


def map_diagnosis(recipe: Recipe, devices: Mesh, adversarial: bool) -> jax.stages.Wrapped:
    """Jit `(state, audio, scalars) -> statistics` over the mesh."""
    per_device = functools.partial(diagnosis.diagnose, adversarial=adversarial)
    return mesh.map_devices(_with_numbers(per_device, recipe), devices, P())


def place_scalars(recipe: Recipe, devices: Mesh) -> Scalars:
    """Put the recipe's numbers on every device.

    The recipe must be the same in every process.
    """
    return mesh.replicate(scalars_of(recipe), mesh.replicated(devices))


def abstract_scalars(recipe: Recipe, devices: Mesh) -> Scalars:
    """Shapes of the recipe's numbers on every device."""
    return on_every_device(scalars_of(recipe), devices)


def abstract_state(recipe: Recipe, devices: Mesh, audio_shape: tuple[int, int, int]) -> TrainState:
    """Shapes of the train state on every device.

    They serve to lower the step, or to restore a checkpoint.

    Args:
      recipe: what to compute.
      devices: a mesh along `data`.
      audio_shape: any `(B, T, C)` that the networks accept.
    """
    return on_every_device(jax.eval_shape(functools.partial(create_train_state, recipe, audio_shape)), devices)


def abstract_batch(devices: Mesh, shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    """Shape of a global batch `(B, T, C)` of audio, split over the devices."""
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(devices, P(AXIS)))


def on_every_device(tree: Any, devices: Mesh) -> Any:
    """Shapes of a tree's leaves, replicated on every device."""
    everywhere = mesh.replicated(devices)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), tree)


def _with_numbers(per_device, recipe):
    def bound(state, audio, scalars):
        return per_device(state, audio, recipe=with_scalars(recipe, scalars))

    return bound
