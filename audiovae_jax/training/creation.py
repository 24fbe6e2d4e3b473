"""The initial train state, drawn on the spot: nothing the size of the networks is compiled for it."""

import functools

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import Mesh

from audiovae_jax.training import mesh
from audiovae_jax.training.state import TrainState, create_train_state

try:  # jax promises nothing of it; without it, all is one program
    from jax.interpreters.partial_eval import dce_jaxpr
except ImportError:
    dce_jaxpr = None


def create_state(recipe, devices: Mesh, audio_shape: tuple[int, int, int]) -> TrainState:
    """What `create_train_state` says, on every device; each process draws for itself.

    One program for it all takes as long to compile as there are parameters: 29 s for `configs/base.py` on two
    cores, where 170 small ones, each for all arrays of one shape, take 8 s.

    Args:
      recipe: a `step.Recipe`.
      devices: a mesh along `data`.
      audio_shape: any `(B, T, C)` that the networks accept.
    """
    create = functools.partial(create_train_state, recipe, audio_shape)
    if dce_jaxpr is None:
        return jax.jit(create, out_shardings=mesh.replicated(devices))()
    program, shapes = jax.make_jaxpr(create, return_shape=True)()
    leaves = core.jaxpr_as_fun(_without_what_is_not_needed(program))()
    for i, shape in enumerate(jax.tree.leaves(shapes)):
        leaves[i] = _copied(leaves[i], shape.dtype)
    return mesh.replicate(jax.tree.unflatten(jax.tree.structure(shapes), leaves), mesh.replicated(devices))


def _without_what_is_not_needed(program):
    """The program without what its outputs do not depend on: what the networks compute from the audio."""
    needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars), instantiate=True)
    return core.ClosedJaxpr(needed, program.consts)


def _copied(leaf, dtype):
    """In memory of its own, which the first step takes over: it may be a constant of a module's, or in two places."""
    if not isinstance(leaf, jax.Array):  # a number that stands in the program itself
        return jnp.asarray(leaf, dtype)
    return jax.device_put(leaf, may_alias=False)
