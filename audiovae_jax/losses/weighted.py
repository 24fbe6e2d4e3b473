"""The sum of reconstruction losses: the one place where their weights count."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from audiovae_jax.errors import require_range


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
        return weighted_sum((weight, values[name]) for name, weight, _ in self.terms), values


def weighted_sum(terms: Iterable[tuple[float | jax.Array, jax.Array]]) -> jax.Array:
    """The float32 sum of `weight * value`; what `is_off` is left out, and its gradient not computed."""
    return sum((weight * value for weight, value in terms if not is_off(weight)), jnp.zeros((), jnp.float32))


def is_off(weight: float | jax.Array) -> bool:
    """Whether a weight is the number 0; an array never is, whatever it holds."""
    return not isinstance(weight, jax.Array) and weight == 0
