"""The train step as a program over a mesh: training, the benchmark and the plan build the same one here."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiovae_jax.training import mesh
from audiovae_jax.training.state import TrainState, create_train_state
from audiovae_jax.training.step import AXIS, Recipe, train_step


def map_step(recipe: Recipe, devices: Mesh, adversarial: bool) -> jax.stages.Wrapped:
    """`(state, audio) -> (state, metrics)`, jitted over the mesh.

    Args:
      recipe: what to compute.
      devices: a mesh along `data`.
      adversarial: whether the discriminator takes part.
    """
    return mesh.map_train_step(functools.partial(train_step, recipe=recipe, adversarial=adversarial), devices)


def abstract_state(recipe: Recipe, devices: Mesh, audio_shape: tuple[int, int, int]) -> TrainState:
    """The shapes of the train state on every device, enough to lower the step and to restore a checkpoint.

    Args:
      recipe: what to compute.
      devices: a mesh along `data`.
      audio_shape: any `(B, T, C)` that the networks accept.
    """
    state = jax.eval_shape(functools.partial(create_train_state, recipe, audio_shape))
    everywhere = mesh.replicated(devices)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), state)


def abstract_batch(devices: Mesh, shape: tuple[int, int, int]) -> jax.ShapeDtypeStruct:
    """A global batch `(B, T, C)` of audio, split over the devices."""
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(devices, P(AXIS)))
