"""The training and validation steps: pure functions of one device.

They run under a mapped axis `data`. One forward pass of the model and one of the discriminator, on real and generated
audio, serve both updates. Each pass is pulled back once per loss that needs it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from audiovae_jax.distributed.mesh import AXIS
from audiovae_jax.losses import AdversarialLossCalculator, WeightedLosses, si_sdr
from audiovae_jax.losses.alignment import Alignment
from audiovae_jax.losses.balancer import balanced_gradient
from audiovae_jax.losses.kl import KLTerm
from audiovae_jax.losses.weighted import weighted_sum
from audiovae_jax.models.audio_vae import AudioVAE, Reconstruction
from audiovae_jax.training.adversarial import adversarial_pass
from audiovae_jax.training.ema import Ema
from audiovae_jax.training.optimizer import FROZEN_ENCODER, Optimizer
from audiovae_jax.training.state import (
    ALIGNMENT,
    TrainState,
    merged,
    split_projection,
    trainable_params,
    with_projection,
)

# Metric names that a user's loss cannot have.
RESERVED_METRICS = (
    "reconstruction_loss", "kl_loss", "kl_weight", "total_g_loss", "total_loss", "best_total_loss", "si_sdr_db",
    "g_adv_loss", "feature_matching_loss", "d_loss", "d_real_acc", "d_fake_acc", "g_grad_norm", "d_grad_norm",
    "g_skipped", "d_skipped", "skipped_g_updates", "skipped_d_updates", "kl_bits_per_second", "gradient_penalty",
    "alignment_loss",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The parts of a step, static under jit.

    Only the numbers that `program.scalars_of` lists may change without compiling.

    Attributes:
      model: the generator.
      losses: reconstruction losses.
      kl: the KL term.
      optimizer: of the model.
      discriminator: a linen module `audio -> (logits, feature_maps)`, or None.
      adversarial: weights of the adversarial losses; None without a discriminator.
      discriminator_optimizer: None without a discriminator.
      generator_update_every: while the discriminator is active, the model is updated at steps divisible by this.
      discriminator_update_every: the discriminator is updated at steps divisible by this.
      seed: of the latent noise and the initial parameters.
      ema: average of the model's parameters, for evaluation; None for none.
      accumulation_steps: parts of each device's share of the batch. They are computed one after the other, for less
        memory. Their gradients are averaged before one update.
      latent_noise: standard deviation of noise that is added to the latent, see `AudioVAE.__call__`.
      balancer_norm: if above 0, the gradients of the losses on the reconstruction are balanced to this norm, see
        `losses.balancer`.
      alignment: of the latents with a teacher's features; None for none.
    """

    model: AudioVAE
    losses: WeightedLosses
    kl: KLTerm
    optimizer: Optimizer
    discriminator: nn.Module | None = None
    adversarial: AdversarialLossCalculator | None = None
    discriminator_optimizer: Optimizer | None = None
    generator_update_every: int = 1
    discriminator_update_every: int = 1
    seed: int = 0
    ema: Ema | None = None
    accumulation_steps: int = 1
    latent_noise: float = 0.0
    balancer_norm: float = 0.0
    alignment: Alignment | None = None

    def __post_init__(self):
        factors = self.optimizer.learning_rate_factors
        first = FROZEN_ENCODER if self.model.encoder_frozen else ()
        if self.alignment is not None and factors:
            first += ((ALIGNMENT, 1.0),)  # the factors are the model's
        first = tuple(pair for pair in first if pair not in factors)
        if first:
            optimizer = dataclasses.replace(self.optimizer, learning_rate_factors=(*first, *factors))
            object.__setattr__(self, "optimizer", optimizer)


def train_step(
    state: TrainState, audio: jax.Array, *, recipe: Recipe, adversarial: bool
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One training step on one device's share of the batch.

    In outline, with `D` the discriminator::

        output = model(audio, noise(seed, step, row))
        loss = sum(weight * loss(output.reconstruction, audio)) + kl_weight * kl(output.mean, output.logvar)
        if alignment is not None:
            loss += alignment_weight * alignment(output.z, teacher(audio), projection)  # it is trained with the model
        if adversarial:
            real, fake = D(audio), D(output.reconstruction)
            loss += adversarial_weight * hinge(fake) + feature_matching_weight * |fake.maps - real.maps|
            d_loss = hinge(real) + hinge(-fake)
        model = adamw(model, pmean(gradient(loss)))
        if adversarial:
            D = adamw(D, pmean(gradient(d_loss)))  # of the same pass, before either update

    It must run under a mapped axis named `data` (`jax.shard_map`, `jax.pmap`).

    An update whose loss or gradient is NaN or infinite on any device is skipped on all devices: its network's
    parameters and optimizer state stay as they are, Adam's count included. The metrics `g_skipped` and `d_skipped`
    report it. Both updates are skipped if the audio or its reconstruction is not finite. `step` counts batches,
    skipped ones included.

    Args:
      state: the same on every device.
      audio: `[b, T, C]`, this device's rows of the global batch.
      recipe: what to compute.
      adversarial: whether the discriminator takes part; False before `warmup_steps`.

    Returns:
      The new state and scalar metrics, both the same on every device.
    """
    trainable = trainable_params(state.params, recipe.optimizer.learning_rate_factors)
    trainable = with_projection(trainable, state.alignment_params)
    noise = latent_noise(recipe, state.step, audio)
    model_every = recipe.generator_update_every if adversarial else 1
    compute = functools.partial(_compute, recipe, state, trainable, adversarial)
    if recipe.accumulation_steps == 1:
        computed = compute(audio, noise)
    else:
        due = [state.step % every == 0 for every in (model_every, recipe.discriminator_update_every)]
        computed = _accumulate(compute, audio, noise, recipe.accumulation_steps, due)
    # Averaged before the updates, which depend on them.
    metrics = lax.pmean(computed.metrics, AXIS)
    batch_is_finite = metrics.pop("finite") == 1
    model = _update(
        recipe.optimizer,
        computed.model_gradient,
        state.opt_state,
        trainable,
        state.step,
        every=model_every,
        loss_is_finite=batch_is_finite & jnp.isfinite(metrics["total_g_loss"]),
    )
    metrics |= {"g_grad_norm": model.grad_norm, "g_skipped": model.skipped}
    metrics["learning_rate"] = recipe.optimizer.learning_rate_at(state.step)
    if "kl_loss" in metrics:
        metrics["kl_weight"] = jnp.float32(recipe.kl.weight_at(state.step))
    params, projection = split_projection(model.params)
    state = state.replace(params=merged(state.params, params), opt_state=model.opt_state, alignment_params=projection)
    if recipe.optimizer.averages:
        averaged, _ = split_projection(recipe.optimizer.evaluation_params(model.opt_state, model.params))
        state = state.replace(averaged_params=averaged)
    elif recipe.ema is not None:
        state = state.replace(averaged_params=recipe.ema.update(state.averaged_params, params, state.step))
    if adversarial:
        discriminator = _update(
            recipe.discriminator_optimizer,
            # After the model's gradient, so that the memory of one pull-back is free before the next.
            lambda: computed.discriminator_gradient(model.grad_norm),
            state.discriminator_opt_state,
            state.discriminator_params,
            state.step,
            every=recipe.discriminator_update_every,
            loss_is_finite=batch_is_finite & jnp.isfinite(metrics["d_loss"]),
        )
        metrics |= {"d_grad_norm": discriminator.grad_norm, "d_skipped": discriminator.skipped}
        metrics["discriminator_learning_rate"] = recipe.discriminator_optimizer.learning_rate_at(state.step)
        state = state.replace(
            discriminator_params=discriminator.params, discriminator_opt_state=discriminator.opt_state
        )
    return state.replace(step=state.step + 1), metrics


class _Computed(NamedTuple):
    """Metrics of one device, and functions that compute the gradients when called."""

    metrics: dict[str, jax.Array]
    model_gradient: Callable[[], Any]
    discriminator_gradient: Callable[[jax.Array], Any] | None


def _compute(recipe, state, trainable, adversarial, audio, noise) -> _Computed:
    """The forward passes and losses of `audio: [b, T, C]`."""
    # Marked as varying between devices, so that gradients stay local until pmean: the gradient of a replicated value
    # would already be a sum over devices.
    trainable, discriminator_params = _varying((trainable, state.discriminator_params))
    trainable, projection = split_projection(trainable)

    def reconstruct(trainable):
        variables = {**state.variables, "params": merged(state.params, trainable)}
        return recipe.model.apply(variables, audio, noise=noise, latent_noise=recipe.latent_noise)

    output, pull_back_model = jax.vjp(reconstruct, trainable)
    align = _alignment(recipe, audio)

    def objective(output: Reconstruction, projection):
        loss, values = recipe.losses(prediction=output.reconstruction, target=audio)
        kl, kl_metrics = _kl(recipe, output, recipe.kl.weight_at(state.step))
        aligned, alignment_metrics = align(output.z, projection)
        metrics = {**values, "reconstruction_loss": loss, **kl_metrics, **alignment_metrics}
        return weighted_sum([(1.0, loss), *kl, *aligned]), metrics

    gradient = jax.value_and_grad(objective, argnums=(0, 1), has_aux=True)
    (loss, metrics), (cotangent, projection_gradient) = gradient(output, projection)
    if adversarial:
        of_pass = adversarial_pass(
            recipe.discriminator, recipe.adversarial.at(state.step), discriminator_params, audio, output.reconstruction
        )
        loss += of_pass.generator["total_adv_loss"]
        metrics |= {
            "g_adv_loss": of_pass.generator["g_adv_loss"],
            "feature_matching_loss": of_pass.generator["fm_loss"],
            **of_pass.discriminator,
        }

    def model_gradient():
        total = cotangent
        if recipe.balancer_norm:
            balanced = _balanced(recipe, state.step, audio, output.reconstruction, of_pass if adversarial else None)
            total = total._replace(reconstruction=balanced)
        elif adversarial:
            total = total._replace(reconstruction=total.reconstruction + of_pass.audio_gradient())
        return with_projection(pull_back_model(total)[0], projection_gradient)

    metrics |= {"total_g_loss": loss, "finite": _is_finite(audio, output.reconstruction)}
    return _Computed(metrics, model_gradient, of_pass.params_gradient if adversarial else None)


def _balanced(recipe, step, audio, reconstruction, of_pass):
    """Return the balanced gradient of the losses on the reconstruction.

    The losses of `of_pass` are included, unless it is None.
    """
    gradients = {
        name: jax.grad(lambda prediction, fn=fn: fn(prediction=prediction, target=audio))(reconstruction)
        for name, _, fn in recipe.losses.terms
    }
    weights = {name: weight for name, weight, _ in recipe.losses.terms}
    if of_pass is not None:
        losses = recipe.adversarial.at(step)
        gradients |= {name: of_pass.audio_gradient(name) for name in ("g_adv_loss", "fm_loss")}
        weights |= {"g_adv_loss": losses.adversarial_weight, "fm_loss": losses.feature_matching_weight}
    return balanced_gradient(gradients, weights, recipe.balancer_norm, AXIS)


def _kl(recipe, output, weight):
    """Return `(weighted terms, metrics)` of the KL divergence.

    Both are empty without a posterior.
    """
    if recipe.model.posterior == "none":
        return [], {}
    kl_loss = recipe.kl(output.mean, output.logvar)
    return [(weight, kl_loss)], {"kl_loss": kl_loss, **recipe.kl.metrics(output.mean, output.logvar)}


def _alignment(recipe, audio):
    """Return `(z, projection) -> (weighted terms, metrics)`.

    Both results are empty without an alignment.
    """
    if recipe.alignment is None:
        return lambda z, projection: ([], {})
    features = recipe.alignment.features(audio)

    def align(z, projection):
        loss = recipe.alignment(z, features, projection)
        return [(recipe.alignment.weight, loss)], {"alignment_loss": loss}

    return align


def _accumulate(compute, audio, noise, steps, due) -> _Computed:
    """Average metrics and gradients over `steps` parts of the batch.

    The parts are computed one after the other.

    Args:
      compute: `(audio, noise) -> _Computed`.
      audio, noise: of all parts.
      steps: the number of parts.
      due: whether the model's and the discriminator's gradient are needed; the other stays 0.
    """

    def one(part):
        metrics, *gradients = compute(*part)
        gradients = [gradient for gradient in gradients if gradient is not None]
        taken = []
        for is_due, gradient in zip(due, gradients, strict=False):
            # The second after the first, as in a step without accumulation.
            call = functools.partial(gradient, *(optax.tree.norm(before) for before in taken))
            taken.append(lax.cond(is_due, call, functools.partial(_zeros, jax.eval_shape(call))))
        return metrics, taken

    parts = jax.tree.map(lambda x: x.reshape(steps, x.shape[0] // steps, *x.shape[1:]), (audio, noise))
    start = _zeros(jax.eval_shape(one, jax.tree.map(lambda x: x[0], parts)))
    total, _ = lax.scan(lambda total, part: (jax.tree.map(jnp.add, total, one(part)), None), start, parts)
    metrics, gradients = jax.tree.map(lambda x: x / steps, total)
    return _Computed(metrics, lambda: gradients[0], lambda after: gradients[1])


def _zeros(shapes):
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def validation_step(variables: dict, audio: jax.Array, *, recipe: Recipe) -> tuple[dict[str, jax.Array], jax.Array]:
    """The objective on one device's share of a validation batch.

    It must run under a mapped axis `data`. The objective is that of training without the discriminator. The KL term has
    its final weight, and the noise is the same at every validation. So all validations of a run can be compared.
    `si_sdr_db` and the reconstruction use the posterior's mean, as a trained model does.

    Args:
      variables: see `TrainState.validation_variables`.
      audio: `[b, T, C]`, this device's rows.
      recipe: the run's recipe.

    Returns:
      Scalar metrics (the same on every device) and this device's reconstruction `[b, T, C]`.
    """
    variables, projection = split_projection(variables)
    output = recipe.model.apply(variables, audio, noise=latent_noise(recipe, 0, audio))
    loss, values = recipe.losses(prediction=output.reconstruction, target=audio)
    kl, kl_metrics = _kl(recipe, output, recipe.kl.weight)
    aligned, alignment_metrics = _alignment(recipe, audio)(output.z, projection)
    reconstruction = recipe.model.apply(variables, audio, deterministic=True).reconstruction
    metrics = {
        **values,
        "reconstruction_loss": loss,
        **kl_metrics,
        "total_loss": weighted_sum([(1.0, loss), *kl, *aligned]),
        "si_sdr_db": -si_sdr(prediction=reconstruction, target=audio),
        **alignment_metrics,
    }
    return lax.pmean(metrics, AXIS), reconstruction


class _Update(NamedTuple):
    params: Any
    opt_state: Any
    grad_norm: jax.Array
    skipped: jax.Array


def _update(optimizer, gradient, opt_state, params, step, *, every: int, loss_is_finite) -> _Update:
    """Update at steps divisible by `every`, unless a value is not finite.

    Otherwise parameters and state are returned unchanged. `loss_is_finite` and, after pmean, the gradient's norm are
    the same on every device.
    """

    def apply():
        grads = lax.pmean(gradient(), AXIS)
        norm = optax.tree.norm(grads)
        is_finite = loss_is_finite & jnp.isfinite(norm)
        updates, new_opt_state = optimizer.update(grads, opt_state, params, step=step, apply=is_finite)
        new = optax.apply_updates(params, updates)
        kept = jax.tree.map(lambda new, old: jnp.where(is_finite, new, old), new, params)
        return _Update(kept, new_opt_state, norm, ~is_finite)

    if every == 1:
        return apply()
    skip = _Update(params, opt_state, jnp.zeros((), jnp.float32), jnp.zeros((), bool))
    return lax.cond(step % every == 0, apply, lambda: skip)


def _is_finite(*arrays) -> jax.Array:
    """Return 1 if every element is finite, else 0.

    The result is float32, so that it can be averaged over devices.
    """
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays])).astype(jnp.float32)


def latent_noise(recipe, step, audio):
    """Standard normal noise `[b, frames, latent_dim]` for this device's rows.

    It depends only on (seed, step, row of the global batch).
    """
    b, t, _ = audio.shape
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), 1), step)
    rows = lax.axis_index(AXIS) * b + jnp.arange(b)
    shape = (recipe.model.frames(t), recipe.model.latent_dim)
    return jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), shape))(rows)


def _varying(tree):
    return jax.tree.map(lambda x: lax.pcast(x, AXIS, to="varying"), tree)
