"""The step and what goes with it as programs over a mesh: training, the benchmark and the plan build the same here.

Each takes a recipe's numbers as its last argument (`scalars`), so that a recipe with others is the same program.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiovae_jax.training import diagnosis, mesh, step
from audiovae_jax.training.scalars import Scalars, scalars_of, with_scalars
from audiovae_jax.training.state import TrainState, create_train_state
from audiovae_jax.training.step import AXIS, Recipe


def map_step(recipe: Recipe, devices: Mesh, adversarial: bool) -> jax.stages.Wrapped:
    """`(state, audio, scalars) -> (state, metrics)`, jitted over the mesh.

    Args:
      recipe: what to compute.
      devices: a mesh along `data`.
      adversarial: whether the discriminator takes part.
    """
    per_device = functools.partial(step.train_step, adversarial=adversarial)
    return mesh.map_train_step(_with_numbers(per_device, recipe), devices)


def map_validation(recipe: Recipe, devices: Mesh) -> jax.stages.Wrapped:
    """`(variables, audio, scalars) -> (metrics, reconstruction)`, jitted over the mesh."""
    return mesh.map_validation_step(_with_numbers(step.validation_step, recipe), devices)


def map_diagnosis(recipe: Recipe, devices: Mesh, adversarial: bool) -> jax.stages.Wrapped:
    """`(state, audio, scalars) -> figures`, jitted over the mesh."""
    per_device = functools.partial(diagnosis.diagnose, adversarial=adversarial)
    return mesh.map_diagnosis(_with_numbers(per_device, recipe), devices)


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
