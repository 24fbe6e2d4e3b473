"""The initial train state, drawn on the spot: nothing the size of the networks is compiled for it."""

import functools

import jax
from jax.extend import core
from jax.interpreters import partial_eval
from jax.sharding import Mesh

from audiovae_jax.training import mesh
from audiovae_jax.training.state import TrainState, create_train_state


def create_state(recipe, devices: Mesh, audio_shape: tuple[int, int, int]) -> TrainState:
    """What `create_train_state` says, on every device.

    One program for it all takes as long to compile as there are parameters: 29 s for `configs/base.py` on two
    cores, where the few dozens of small ones, each for all arrays of one shape, take 8 s.

    Args:
      recipe: a `step.Recipe`.
      devices: a mesh along `data`.
      audio_shape: any `(B, T, C)` that the networks accept.
    """
    create = functools.partial(create_train_state, recipe, audio_shape)
    program, shapes = jax.make_jaxpr(create, return_shape=True)()
    leaves = core.jaxpr_as_fun(_without_what_is_not_needed(program))()
    state = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return mesh.replicate(state, mesh.replicated(devices))


def _without_what_is_not_needed(program):
    """The program without what its outputs do not depend on: what the networks compute from the audio."""
    needed, _ = partial_eval.dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars), instantiate=True)
    return core.ClosedJaxpr(needed, program.consts)
