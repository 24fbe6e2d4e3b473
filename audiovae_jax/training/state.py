"""The train state: everything that a step changes, as one pytree."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

PyTree = Any


@flax.struct.dataclass
class TrainState:
    """What a training run is at one moment.

    Attributes:
      step: int32 scalar, the number of batches seen.
      params: the model's parameters.
      latent_statistics: the model's `latent_statistics` collection; not trained.
      opt_state: optax state over the trainable part of `params`.
      discriminator_params: None in a run without a discriminator.
      discriminator_opt_state: likewise.
    """

    step: jax.Array
    params: PyTree
    latent_statistics: PyTree
    opt_state: PyTree
    discriminator_params: PyTree = None
    discriminator_opt_state: PyTree = None

    @property
    def variables(self) -> dict:
        """What `model.apply` takes."""
        return {"params": self.params, "latent_statistics": self.latent_statistics}


def split_trainable(params: dict, encoder_frozen: bool) -> tuple[dict, dict]:
    """`(trainable, frozen)` top-level parts of the model's parameters."""
    frozen = {"encoder"} if encoder_frozen else set()
    return (
        {name: part for name, part in params.items() if name not in frozen},
        {name: part for name, part in params.items() if name in frozen},
    )


def create_train_state(recipe, audio_shape: tuple[int, int, int]) -> TrainState:
    """Initial state from `recipe.seed`; traceable, for `creation` and for its shapes.

    Args:
      recipe: a `step.Recipe`.
      audio_shape: any `(B, T, C)` that the networks accept; they do not depend on B and T.
    """
    key = jax.random.key(recipe.seed)
    audio = jnp.zeros(audio_shape, jnp.float32)
    model_key, discriminator_key = jax.random.split(key)
    variables = recipe.model.init(model_key, audio, deterministic=True)
    params = variables["params"]
    trainable, _ = split_trainable(params, recipe.model.encoder_frozen)
    discriminator_params = discriminator_opt_state = None
    if recipe.discriminator is not None:
        discriminator_params = recipe.discriminator.init(discriminator_key, audio)["params"]
        discriminator_opt_state = recipe.discriminator_optimizer.init(discriminator_params)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        latent_statistics=variables["latent_statistics"],
        opt_state=recipe.optimizer.init(trainable),
        discriminator_params=discriminator_params,
        discriminator_opt_state=discriminator_opt_state,
    )


def count_parameters(params: PyTree) -> int:
    """The number of scalars in a tree of arrays or shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
