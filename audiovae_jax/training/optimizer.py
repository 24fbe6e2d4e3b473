"""AdamW with clipping, whose learning rate follows the training step."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from audiovae_jax.errors import require_range


@dataclasses.dataclass(frozen=True)
class AdamW:
    """AdamW (Loshchilov and Hutter, 2019) with a linear warm-up and a cosine schedule over `num_steps`.

    It is used like an optax transform, but `update` has the training step as an argument, `step=`. The learning rate is
    a function of the step, not of the number of updates. So a discriminator that starts late, or is updated every other
    step, follows the same schedule as the generator. The schedule's numbers may be traced scalars.

    Attributes:
      num_steps: the length of the run.
      learning_rate: at step 0, without a warm-up.
      final_learning_rate: at `num_steps`.
      b1, b2, eps: Adam's.
      weight_decay: decoupled, on every parameter.
      clip_norm: largest global norm of the gradient; 0 for no clipping.
      warmup_steps: steps over which the rate rises linearly to the cosine; 0 for none.
      first_step: the step at which the warm-up begins.

    Raises:
      ValueError: a number is out of range.
    """

    num_steps: int
    learning_rate: float
    final_learning_rate: float
    b1: float
    b2: float
    eps: float
    weight_decay: float
    clip_norm: float
    warmup_steps: int = 0
    first_step: int = 0

    def __post_init__(self):
        require_range("num_steps", self.num_steps, above=0)
        require_range("learning_rate", self.learning_rate, above=0)
        for name in ("final_learning_rate", "weight_decay", "clip_norm", "warmup_steps", "first_step"):
            require_range(name, getattr(self, name))
        require_range("b1", self.b1, below=1)
        require_range("b2", self.b2, below=1)
        require_range("eps", self.eps, above=0)

    def learning_rate_at(self, step) -> jax.Array:
        """The learning rate at `step`, an int or a traced scalar."""
        rate = cosine(step, self.num_steps, self.learning_rate, self.final_learning_rate)
        # + 1, so that the first update has a rate above 0.
        done = (step - self.first_step + 1) / jnp.maximum(self.warmup_steps, 1)
        return rate * jnp.clip(done, 0.0, 1.0)

    def init(self, params) -> optax.OptState:
        """The state before the first update."""
        return self._chain(None).init(params)

    def update(self, updates, state, params, *, step, apply=True) -> tuple[optax.Updates, optax.OptState]:
        """Return `(updates to add to params, new state)`.

        Args:
          updates: the gradients.
          state: from `init` or the last update.
          params: the parameters.
          step: the training step.
          apply: a traced boolean. If False, the state is unchanged and the updates must be discarded.
        """
        return self._chain(self.learning_rate_at(step)).update(updates, state, params, apply=apply)

    def _chain(self, rate):
        return optax.chain(
            optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity(),
            _scale_by_adam(self.b1, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay),
            optax.stateless(lambda updates, _: jax.tree.map(lambda u: -rate * u, updates)),
        )


def _scale_by_adam(b1, b2, eps) -> optax.GradientTransformationExtraArgs:
    """`optax.scale_by_adam` with the same state and an argument `apply`.

    The update is computed from the selected moments. Computed before the selection, XLA for CPUs would compute the
    moments twice and keep copies of the old ones.
    """

    def update(updates, state, params=None, *, apply=True):
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment_per_elem_norm(updates, state.nu, b2, 2)
        new = optax.ScaleByAdamState(count=count, mu=mu, nu=nu)
        kept = jax.tree.map(lambda new, old: jnp.where(apply, new, old), new, state)
        mu = optax.tree.bias_correction(kept.mu, b1, count)
        nu = optax.tree.bias_correction(kept.nu, b2, count)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu), kept

    return optax.GradientTransformationExtraArgs(optax.scale_by_adam(b1, b2, eps).init, update)


def cosine(step, num_steps, first, last) -> jax.Array:
    """Cosine from `first` at step 0 to `last` from `num_steps` on (Loshchilov and Hutter, 2017)."""
    angle = jnp.pi * jnp.minimum(step / num_steps, 1.0)
    return last + (first - last) * 0.5 * (1.0 + jnp.cos(angle))
