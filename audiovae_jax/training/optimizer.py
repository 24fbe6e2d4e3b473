"""AdamW with clipping, whose learning rate follows the training step."""

import jax
import optax

from audiovae_jax.checks import require_range


def adamw(
    *,
    num_steps: int,
    learning_rate: float,
    final_learning_rate: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    clip_norm: float,
) -> optax.GradientTransformationExtraArgs:
    """AdamW (Loshchilov and Hutter, 2019) with a cosine schedule over `num_steps`.

    The learning rate is a function of the training step, which `update` takes as `step=`, and not of
    the count of updates: a discriminator that joins late, or is updated every other step, is on the
    same schedule as the generator.

    Args:
      num_steps: the length of the run.
      learning_rate: at step 0.
      final_learning_rate: at `num_steps`.
      b1, b2, eps: Adam's.
      weight_decay: decoupled, on every parameter.
      clip_norm: largest global norm of the gradient; 0 for no clipping.

    Raises:
      ValueError: a number out of its range.
    """
    require_range("learning_rate", learning_rate, above=0)
    require_range("final_learning_rate", final_learning_rate)
    require_range("b1", b1, below=1)
    require_range("b2", b2, below=1)
    require_range("eps", eps, above=0)
    require_range("weight_decay", weight_decay)
    require_range("clip_norm", clip_norm)
    schedule = learning_rate_schedule(num_steps, learning_rate, final_learning_rate)
    return optax.chain(
        optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity(),
        optax.scale_by_adam(b1=b1, b2=b2, eps=eps),
        optax.add_decayed_weights(weight_decay),
        _scale_by_schedule_at_step(schedule),
    )


def learning_rate_schedule(num_steps: int, learning_rate: float, final_learning_rate: float) -> optax.Schedule:
    """Cosine from `learning_rate` at step 0 to `final_learning_rate` at `num_steps` and after; constant if equal."""
    if final_learning_rate == learning_rate:
        return optax.constant_schedule(learning_rate)
    alpha = final_learning_rate / learning_rate if learning_rate else 0.0
    return optax.cosine_decay_schedule(learning_rate, num_steps, alpha)


def _scale_by_schedule_at_step(schedule):
    def update(updates, state, params=None, *, step, **extra):
        del params, extra
        rate = schedule(step)
        return jax.tree.map(lambda u: -rate * u, updates), state

    return optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
