"""Exponential moving average of the parameters."""

import dataclasses

import jax
import jax.numpy as jnp

from audiovae_jax.errors import require_range


@dataclasses.dataclass(frozen=True)
class Ema:
    """An exponential moving average of parameters, in their dtype.

    After each step `average = d * average + (1 - d) * params`, with `d = decay_at(step)`.

    Attributes:
      decay: largest decay of a step, below 1.
      start_step: the average equals the parameters until this step.
      power: from the start, the decay rises as `1 - (1 + n) ** -power` with the number `n` of steps since then, up to
        `decay`. 0 for `decay` at once.

    Raises:
      ValueError: a number is out of range.
    """

    decay: float
    start_step: int = 0
    power: float = 0.0

    def __post_init__(self):
        require_range("decay", self.decay, above=0, below=1)
        require_range("start_step", self.start_step)
        require_range("power", self.power)

    def decay_at(self, step) -> jax.Array:
        """The decay of the step that follows `step` steps, an int or a traced scalar."""
        since = step - self.start_step
        rising = 1.0 - (1.0 + jnp.maximum(since, 0)) ** -self.power if self.power else self.decay
        return jnp.where(since < 0, 0.0, jnp.minimum(rising, self.decay)).astype(jnp.float32)

    def update(self, average, params, step):
        """Return the average after a step, a pytree like `params`."""
        new = 1.0 - self.decay_at(step)
        return jax.tree.map(lambda average, param: average + new * (param - average), average, params)
