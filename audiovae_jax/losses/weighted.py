"""The sum of reconstruction losses: the one place where their weights count."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from audiovae_jax.checks import require_range


@dataclasses.dataclass(frozen=True)
class WeightedLosses:
    """`sum weight * fn(prediction=..., target=...)`.

    Attributes:
      terms: `(name, weight, fn)` each.
    """

    terms: tuple[tuple[str, float, Callable], ...]

    def __post_init__(self):
        for name, weight, _ in self.terms:
            require_range(f"the weight of {name}", weight)

    def __call__(self, *, prediction, target):
        """The weighted total and each loss unweighted, `(scalar, {name: scalar})`, of `[B, T, C]` audio.

        The losses see float32, whatever the model computed in.
        """
        prediction, target = prediction.astype(jnp.float32), target.astype(jnp.float32)
        values = {name: fn(prediction=prediction, target=target) for name, _, fn in self.terms}
        total = sum((weight * values[name] for name, weight, _ in self.terms), jnp.zeros((), jnp.float32))
        return total, values
