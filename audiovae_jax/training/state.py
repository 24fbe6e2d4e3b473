"""The train state as one pytree, and its creation.

It holds everything that a step changes.
"""

import functools
from typing import Any

import flax.struct
import flax.traverse_util
import jax
import jax.numpy as jnp
from jax.extend import core
from jax.sharding import Mesh

from audiovae_jax.distributed import mesh
from audiovae_jax.training.optimizer import factor_of, matches

try:  # not a public API of jax; without it, the state is created by one large program
    from jax.interpreters.partial_eval import dce_jaxpr
except ImportError:
    dce_jaxpr = None

PyTree = Any
ALIGNMENT = "alignment"  # the key of the projection of `losses.alignment` in trees of all trained parameters


@flax.struct.dataclass
class TrainState:
    """The state of a training run.

    Attributes:
      step: int32 scalar, the number of batches seen.
      params: the model's parameters.
      latent_statistics: the model's `latent_statistics` collection; not trained.
      opt_state: optax state over the trainable part of `params`, see `with_projection`.
      discriminator_params: None in a run without a discriminator.
      discriminator_opt_state: likewise.
      averaged_params: the parameters to evaluate and save, where they are not the trained ones. Frozen parameters are
        left out.
      alignment_params: parameters of the projection of `losses.alignment`; None without an alignment.
    """

    step: jax.Array
    params: PyTree
    latent_statistics: PyTree
    opt_state: PyTree
    discriminator_params: PyTree = None
    discriminator_opt_state: PyTree = None
    averaged_params: PyTree = None
    alignment_params: PyTree = None

    @property
    def variables(self) -> dict:
        """The variables for `model.apply`, as trained."""
        return {"params": self.params, "latent_statistics": self.latent_statistics}

    @property
    def evaluation_variables(self) -> dict:
        """The variables to evaluate and save.

        They have `averaged_params` in place of the trained ones, if there are any.
        """
        if self.averaged_params is None:
            return self.variables
        return {**self.variables, "params": merged(self.params, self.averaged_params)}

    @property
    def validation_variables(self) -> dict:
        """The variables for `step.validation_step`.

        They include the projection of `losses.alignment`, if there is one.
        """
        return with_projection(self.evaluation_variables, self.alignment_params)


def trainable_params(params: dict, factors: tuple[tuple[str, float], ...]) -> dict:
    """Return the model's parameters without the frozen ones.

    Frozen parameters have no gradient, optimizer state or weight decay.

    Args:
      params: nested dicts.
      factors: `learning_rate_factors` of the optimizer. A parameter with factor 0 is frozen.
    """
    if not factors:
        return params
    flat = flax.traverse_util.flatten_dict(params)
    return flax.traverse_util.unflatten_dict({path: x for path, x in flat.items() if factor_of(path, factors) != 0})


def with_projection(tree: dict, projection: dict | None) -> dict:
    """Return `tree` with the parameters of the alignment's projection.

    They are trained with the model's, see `losses.alignment`.
    """
    return tree if projection is None else {**tree, ALIGNMENT: projection}


def split_projection(tree: dict) -> tuple[dict, dict | None]:
    """Return the arguments of `with_projection`."""
    return {key: branch for key, branch in tree.items() if key != ALIGNMENT}, tree.get(ALIGNMENT)


def with_initial(params: dict, fresh: dict, patterns: tuple[str, ...]) -> dict:
    """Return `params` with the leaves of `fresh` that match one of `patterns`.

    See `optimizer.matches`.
    """
    flat, initial = (flax.traverse_util.flatten_dict(tree) for tree in (params, fresh))
    kept = {path: leaf for path, leaf in initial.items() if any(matches(path, pattern) for pattern in patterns)}
    return flax.traverse_util.unflatten_dict(flat | kept)


def merged(params: dict, others: dict) -> dict:
    """Return `params`, nested dicts, with the leaves of `others` added or replaced."""
    flat, more = (flax.traverse_util.flatten_dict(tree) for tree in (params, others))
    return flax.traverse_util.unflatten_dict(flat | more)


def create_train_state(recipe, audio_shape: tuple[int, int, int]) -> TrainState:
    """Return the initial state for `recipe.seed`.

    `create_state` and shape inference trace this function.

    Args:
      recipe: a `step.Recipe`.
      audio_shape: any `(B, T, C)` that the networks accept; they do not depend on B and T.
    """
    key = jax.random.key(recipe.seed)
    audio = jnp.zeros(audio_shape, jnp.float32)
    model_key, discriminator_key = jax.random.split(key)
    variables = recipe.model.init(model_key, audio, deterministic=True)
    params = variables["params"]
    trainable = trainable_params(params, recipe.optimizer.learning_rate_factors)
    discriminator_params = discriminator_opt_state = None
    if recipe.discriminator is not None:
        discriminator_params = recipe.discriminator.init(discriminator_key, audio)["params"]
        discriminator_opt_state = recipe.discriminator_optimizer.init(discriminator_params)
    projection = None
    if recipe.alignment is not None:
        projection = recipe.alignment.init(jax.random.fold_in(key, 2), recipe.model.latent_dim)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        latent_statistics=variables["latent_statistics"],
        opt_state=recipe.optimizer.init(with_projection(trainable, projection)),
        discriminator_params=discriminator_params,
        discriminator_opt_state=discriminator_opt_state,
        averaged_params=trainable if recipe.ema is not None or recipe.optimizer.averages else None,
        alignment_params=projection,
    )


def create_state(recipe, devices: Mesh, audio_shape: tuple[int, int, int]) -> TrainState:
    """Create the initial state on every device; see `Creation`.

    Args:
      recipe: a `step.Recipe`.
      devices: a mesh along `data`.
      audio_shape: any `(B, T, C)` that the networks accept.
    """
    return Creation(recipe, audio_shape).run(devices)


class Creation:
    """The traced program that creates the initial state.

    It runs operation by operation, so that arrays of one shape share a compiled program: 8 s instead of 29 s for
    `configs/base.py` on two cores.

    Args:
      recipe, audio_shape: see `create_state`.

    Attributes:
      shapes: of the state.
    """

    def __init__(self, recipe, audio_shape: tuple[int, int, int]):
        self._create = functools.partial(create_train_state, recipe, audio_shape)
        self._program, self.shapes = jax.make_jaxpr(self._create, return_shape=True)()

    def run(self, devices: Mesh) -> TrainState:
        """Return the state, on every device of a mesh along `data`."""
        if dce_jaxpr is None:
            return jax.jit(self._create, out_shardings=mesh.replicated(devices))()
        leaves = core.jaxpr_as_fun(_without_dead_code(self._program))()
        for i, shape in enumerate(jax.tree.leaves(self.shapes)):
            leaves[i] = _copy(leaves[i], shape.dtype)
        return mesh.replicate(jax.tree.unflatten(jax.tree.structure(self.shapes), leaves), mesh.replicated(devices))


def _without_dead_code(program):
    """Remove operations that no output depends on, such as activations."""
    needed, _ = dce_jaxpr(program.jaxpr, [True] * len(program.jaxpr.outvars), instantiate=True)
    return core.ClosedJaxpr(needed, program.consts)


def _copy(leaf, dtype):
    """Return a copy for the first step to donate.

    The leaf may be a module's constant, or occur twice.
    """
    if not isinstance(leaf, jax.Array):  # a literal of the program
        return jnp.asarray(leaf, dtype)
    return jax.device_put(leaf, may_alias=False)
