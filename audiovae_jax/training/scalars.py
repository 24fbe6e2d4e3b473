"""The numbers of a recipe that a compiled step takes as arguments: another one compiles nothing anew.

Which they are is said here alone (`_FIELDS`, and the weights of the losses): weights, warm-ups, learning
rates, the length of the run and the seed. What else a recipe has shapes the arithmetic, and is part of the
program: the moments' decay, weight decay, clipping, free bits, and how often a network is updated.

A weight of exactly 0 is part of the program too: the way back from its loss is not computed at all, and only
the loss's value is reported. So a weight that becomes 0, or is 0 no more, is another program.
"""

import dataclasses

import numpy as np

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
