"""The weighted sum of reconstruction losses."""

import dataclasses
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp

from audiovae_jax.errors import require_range


@dataclasses.dataclass(frozen=True)
class WeightedLosses:
    """Reconstruction losses, summed as `weight * fn(prediction=..., target=...)`.

    Attributes:
      terms: one `(name, weight, fn)` per loss.
    """

    terms: tuple[tuple[str, float, Callable], ...]

    def __post_init__(self):
        for name, weight, _ in self.terms:
            require_range(f"the weight of {name}", weight)

    def __call__(self, *, prediction, target):
        """Return the weighted total and the unweighted losses.

        Args:
          prediction, target: `[B, T, C]` audio of any dtype; it is cast to float32.

        Returns:
          `(scalar, {name: scalar})`.
        """
        prediction, target = prediction.astype(jnp.float32), target.astype(jnp.float32)
        values = {name: fn(prediction=prediction, target=target) for name, _, fn in self.terms}
        return weighted_sum((weight, values[name]) for name, weight, _ in self.terms), values


def weighted_sum(terms: Iterable[tuple[float | jax.Array, jax.Array]]) -> jax.Array:
    """Return the float32 sum of `weight * value`.

    A term whose weight `is_off` is omitted, so its gradient is not computed.
    """
    return sum((weight * value for weight, value in terms if not is_off(weight)), jnp.zeros((), jnp.float32))


def is_off(weight: float | jax.Array) -> bool:
    """Return whether `weight` is the Python number 0. It is False for every array."""
    return not isinstance(weight, jax.Array) and weight == 0
