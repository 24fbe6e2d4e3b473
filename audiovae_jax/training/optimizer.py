"""Optimizers from optax whose learning rate follows the training step."""

import dataclasses
import fnmatch

import jax
import jax.numpy as jnp
import optax

from audiovae_jax.errors import require_range

OPTIMIZERS = ("adamw", "lion", "adafactor", "muon", "schedule_free_adamw")
# `learning_rate_factors` of a model whose encoder is frozen.
FROZEN_ENCODER = (("encoder", 0.0),)
SCHEDULES = ("cosine", "constant", "inverse_sqrt", "warmup_stable_decay")


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """An optimizer with a linear warm-up and a schedule of its learning rate.

    It is used like an optax transform, but `update` has the training step as an argument, `step=`. The learning rate is
    a function of the step, not of the number of updates. So a discriminator that starts late, or is updated every other
    step, follows the same schedule as the generator. The schedule's numbers may be traced scalars.

    Optimizers by `name`:
      "adamw": Loshchilov and Hutter, 2019.
      "lion": Chen et al., 2023. It uses b1, b2 and weight_decay.
      "adafactor": Shazeer and Stern, 2018. It uses weight_decay; steps are relative to the size of the parameters.
      "muon": Jordan et al., 2024, for parameters of two and more axes; AdamW for the others, with the same rate. A
        kernel counts as a matrix from all other axes to its output channels.
      "schedule_free_adamw": Defazio et al., 2024. `evaluation_params` are the averaged parameters. b1 is
        the weight of its interpolation. Use it with the schedule "constant".

    Schedules by `schedule`, after the warm-up:
      "cosine": from `learning_rate` at step 0 to `final_learning_rate` at `num_steps` (Loshchilov and Hutter, 2017).
      "constant": `learning_rate`.
      "inverse_sqrt": `learning_rate / sqrt(1 + step / decay_steps)`, at least `final_learning_rate`.
      "warmup_stable_decay": `learning_rate`, then linear to `final_learning_rate` over the last `decay_steps` (Hu et
        al., 2024).

    Attributes:
      num_steps: the length of the run.
      learning_rate: at step 0, without a warm-up.
      final_learning_rate: at `num_steps`.
      b1, b2, eps: Adam's.
      weight_decay: decoupled, on every parameter.
      clip_norm: largest global norm of the gradient; 0 for no clipping.
      warmup_steps: steps over which the rate rises linearly to the schedule's; 0 for none.
      first_step: the step at which the warm-up begins.
      name: one of `OPTIMIZERS`.
      schedule: one of `SCHEDULES`.
      decay_steps: see the schedules that use it.
      learning_rate_factors: pairs of a pattern and a factor of the learning rate, see `factor_of`.

    Raises:
      ValueError: a number is out of range, or a name is unknown.
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
    name: str = "adamw"
    schedule: str = "cosine"
    decay_steps: int = 0
    learning_rate_factors: tuple[tuple[str, float], ...] = ()

    def __post_init__(self):
        require_range("num_steps", self.num_steps, above=0)
        require_range("learning_rate", self.learning_rate, above=0)
        for name in ("final_learning_rate", "weight_decay", "clip_norm", "warmup_steps", "first_step", "decay_steps"):
            require_range(name, getattr(self, name))
        require_range("b1", self.b1, below=1)
        require_range("b2", self.b2, below=1)
        require_range("eps", self.eps, above=0)
        for name, known in (("name", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name}={getattr(self, name)!r} is unknown; choose from {', '.join(known)}")
        if self.schedule in ("inverse_sqrt", "warmup_stable_decay") and not self.decay_steps:
            raise ValueError(f"schedule={self.schedule!r} needs decay_steps above 0")
        if self.name == "schedule_free_adamw" and not self.b1:
            raise ValueError("b1=0 leaves schedule_free_adamw without its average; use for instance 0.9")
        for pair in self.learning_rate_factors:
            if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and isinstance(pair[0], str)):
                raise ValueError(f"learning_rate_factors has {pair!r}; give pairs of a pattern and a factor")
            require_range(f"learning_rate_factors[{pair[0]!r}]", pair[1])

    @property
    def averages(self) -> bool:
        """Whether other parameters than the trained ones are for evaluation."""
        return self.name == "schedule_free_adamw"

    def learning_rate_at(self, step) -> jax.Array:
        """The learning rate at `step`, an int or a traced scalar."""
        # + 1, so that the first update has a rate above 0.
        done = (step - self.first_step + 1) / jnp.maximum(self.warmup_steps, 1)
        return self._scheduled(step) * jnp.clip(done, 0.0, 1.0)

    def _scheduled(self, step):
        first, last = self.learning_rate, self.final_learning_rate
        if self.schedule == "constant":
            return jnp.asarray(first, jnp.float32)
        if self.schedule == "inverse_sqrt":
            return jnp.maximum(first / jnp.sqrt(1.0 + step / self.decay_steps), last)
        if self.schedule == "warmup_stable_decay":
            left = jnp.clip((self.num_steps - step) / self.decay_steps, 0.0, 1.0)
            return last + (first - last) * left
        return cosine(step, self.num_steps, first, last)

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
        chain = self._chain(self.learning_rate_at(step))
        if self.name == "adamw":
            return chain.update(updates, state, params, apply=apply)
        updates, new = chain.update(updates, state, params)
        return updates, jax.tree.map(lambda new, old: jnp.where(apply, new, old), new, state)

    def evaluation_params(self, state: optax.OptState, params):
        """The parameters to evaluate and save, if `averages`; only those are validated."""
        return optax.contrib.schedule_free_eval_params(state[-1], params)

    def _chain(self, rate):
        clip = optax.clip_by_global_norm(self.clip_norm) if self.clip_norm else optax.identity()
        return optax.chain(clip, *getattr(self, f"_{self.name}")(rate))

    def _adamw(self, rate):
        adam = _scale_by_adam(self.b1, self.b2, self.eps)
        return adam, optax.add_decayed_weights(self.weight_decay), self._descend(rate)

    def _lion(self, rate):
        return (
            optax.scale_by_lion(self.b1, self.b2),
            optax.add_decayed_weights(self.weight_decay),
            self._descend(rate),
        )

    def _adafactor(self, rate):
        return optax.adafactor(weight_decay_rate=self.weight_decay), optax.scale(-1.0), self._descend(rate)

    def _muon(self, rate):
        muon = optax.contrib.muon(
            1.0,
            beta=0.95,
            eps=self.eps,
            weight_decay=self.weight_decay,
            adam_b1=self.b1,
            adam_b2=self.b2,
            adam_weight_decay=self.weight_decay,
            muon_weight_dimension_numbers=_as_matrices,
        )
        return muon, optax.scale(-1.0), self._descend(rate)

    def _schedule_free_adamw(self, rate):
        adamw = optax.chain(
            optax.scale_by_adam(0.0, self.b2, self.eps),
            optax.add_decayed_weights(self.weight_decay),
            self._descend(rate),
        )
        return (optax.contrib.schedule_free(adamw, rate, b1=self.b1),)

    def _descend(self, rate):
        if not self.learning_rate_factors:
            return optax.stateless(lambda updates, _: jax.tree.map(lambda u: -rate * u, updates))

        def scale(path, update):
            return -rate * factor_of(path, self.learning_rate_factors) * update

        return optax.stateless(lambda updates, _: jax.tree_util.tree_map_with_path(scale, updates))


def factor_of(path, factors: tuple[tuple[str, float], ...]) -> float:
    """Return the factor of a parameter's learning rate; 0 freezes it.

    The first pair counts whose pattern `matches`. Without such a pair the factor is 1.

    Args:
      path: keys of a pytree, or names.
      factors: pairs of a pattern and a factor.
    """
    return next((factor for pattern, factor in factors if matches(path, pattern)), 1.0)


def matches(path, pattern: str) -> bool:
    """Whether a pattern matches a parameter's path or one of its parents.

    Patterns are those of `fnmatch`.

    Args:
      path: keys of a pytree, or names.
      pattern: such as "decoder", "decoder/blocks_*" or "*/bias".
    """
    names = [str(getattr(key, "key", key)) for key in path]
    return any(fnmatch.fnmatchcase("/".join(names[:end]), pattern) for end in range(1, len(names) + 1))


def _as_matrices(params):
    """The axes of each kernel as those of a matrix, for Muon."""

    def axes(array):
        if array.ndim < 2:
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(array.ndim - 1)), array.ndim - 1)

    return jax.tree.map(axes, params)


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
    """Cosine from `first` at step 0 to `last` from step `num_steps` on."""
    angle = jnp.pi * jnp.minimum(step / num_steps, 1.0)
    return last + (first - last) * 0.5 * (1.0 + jnp.cos(angle))
