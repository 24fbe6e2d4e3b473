"""The training and validation steps: pure functions of one device, for a mesh axis `data`.

One forward pass of the model and one of the discriminator, on real and generated audio, serve both updates. Each
pass is pulled back once per loss that needs it.
"""

import dataclasses
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax import lax

from audiovae_jax.distributed.mesh import AXIS
from audiovae_jax.losses import AdversarialLossCalculator, WeightedLosses, si_sdr
from audiovae_jax.losses.kl import KLTerm
from audiovae_jax.losses.weighted import weighted_sum
from audiovae_jax.models.audio_vae import AudioVAE, Reconstruction
from audiovae_jax.training.adversarial import adversarial_pass
from audiovae_jax.training.optimizer import AdamW
from audiovae_jax.training.state import TrainState, split_trainable

# Metric names that a user's loss cannot have.
RESERVED_METRICS = (
    "reconstruction_loss", "kl_loss", "kl_weight", "total_g_loss", "total_loss", "best_total_loss", "si_sdr_db",
    "g_adv_loss", "feature_matching_loss", "d_loss", "d_real_acc", "d_fake_acc", "g_grad_norm", "d_grad_norm",
    "g_skipped", "d_skipped", "skipped_g_updates", "skipped_d_updates",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The parts of a step: static under jit, except for the numbers that `program.scalars_of` lists.

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
    """

    model: AudioVAE
    losses: WeightedLosses
    kl: KLTerm
    optimizer: AdamW
    discriminator: nn.Module | None = None
    adversarial: AdversarialLossCalculator | None = None
    discriminator_optimizer: AdamW | None = None
    generator_update_every: int = 1
    discriminator_update_every: int = 1
    seed: int = 0


def train_step(
    state: TrainState, audio: jax.Array, *, recipe: Recipe, adversarial: bool
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One training step on one device's share of the batch.

    In outline, with `D` the discriminator::

        output = model(audio, noise(seed, step, row))
        loss = sum(weight * loss(output.reconstruction, audio)) + kl_weight * kl(output.mean, output.logvar)
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
    # Marked as varying between devices, so that gradients stay local until pmean: the gradient of a replicated value
    # would already be a sum over devices.
    trainable, frozen = split_trainable(state.params, recipe.model.encoder_frozen)
    varying, discriminator_params = _varying((trainable, state.discriminator_params))
    noise = latent_noise(recipe, state.step, audio)

    def reconstruct(trainable):
        variables = {"params": {**trainable, **frozen}, "latent_statistics": state.latent_statistics}
        return recipe.model.apply(variables, audio, noise=noise)

    output, pull_back_model = jax.vjp(reconstruct, varying)
    kl_weight = recipe.kl.weight_at(state.step)

    def objective(output: Reconstruction):
        loss, values = recipe.losses(prediction=output.reconstruction, target=audio)
        kl = _kl(output, recipe)
        metrics = {**values, "reconstruction_loss": loss, **kl}
        return weighted_sum([(1.0, loss), *((kl_weight, value) for value in kl.values())]), metrics

    (loss, metrics), cotangent = jax.value_and_grad(objective, has_aux=True)(output)
    if adversarial:
        of_pass = adversarial_pass(
            recipe.discriminator, recipe.adversarial, discriminator_params, audio, output.reconstruction
        )
        loss += of_pass.generator["total_adv_loss"]
        metrics |= {
            "g_adv_loss": of_pass.generator["g_adv_loss"],
            "feature_matching_loss": of_pass.generator["fm_loss"],
            **of_pass.discriminator,
        }

    def model_gradient():
        total = cotangent
        if adversarial:
            total = total._replace(reconstruction=total.reconstruction + of_pass.audio_gradient())
        return pull_back_model(total)[0]

    # Averaged before the updates, which depend on them.
    metrics = lax.pmean({**metrics, "total_g_loss": loss, "finite": _is_finite(audio, output.reconstruction)}, AXIS)
    batch_is_finite = metrics.pop("finite") == 1
    model = _update(
        recipe.optimizer,
        model_gradient,
        state.opt_state,
        trainable,
        state.step,
        every=recipe.generator_update_every if adversarial else 1,
        loss_is_finite=batch_is_finite & jnp.isfinite(metrics["total_g_loss"]),
    )
    metrics |= {"g_grad_norm": model.grad_norm, "g_skipped": model.skipped}
    metrics |= {"kl_weight": jnp.float32(kl_weight)} if "kl_loss" in metrics else {}
    state = state.replace(params={**model.params, **frozen}, opt_state=model.opt_state)
    if adversarial:
        discriminator = _update(
            recipe.discriminator_optimizer,
            # After the model's gradient, so that the memory of one pull-back is free before the next.
            lambda: of_pass.params_gradient(model.grad_norm),
            state.discriminator_opt_state,
            state.discriminator_params,
            state.step,
            every=recipe.discriminator_update_every,
            loss_is_finite=batch_is_finite & jnp.isfinite(metrics["d_loss"]),
        )
        metrics |= {"d_grad_norm": discriminator.grad_norm, "d_skipped": discriminator.skipped}
        state = state.replace(
            discriminator_params=discriminator.params, discriminator_opt_state=discriminator.opt_state
        )
    return state.replace(step=state.step + 1), metrics


def validation_step(variables: dict, audio: jax.Array, *, recipe: Recipe) -> tuple[dict[str, jax.Array], jax.Array]:
    """The objective on one device's share of a validation batch, under a mapped axis `data`.

    The objective is that of training without the discriminator, with the KL term at its final weight and the same
    noise at every validation, so that all validations of a run can be compared. `si_sdr_db` and the reconstruction use
    the posterior's mean, as a trained model does.

    Returns:
      Scalar metrics (the same on every device) and this device's reconstruction `[b, T, C]`.
    """
    output = recipe.model.apply(variables, audio, noise=latent_noise(recipe, 0, audio))
    loss, values = recipe.losses(prediction=output.reconstruction, target=audio)
    kl = _kl(output, recipe)
    reconstruction = recipe.model.apply(variables, audio, deterministic=True).reconstruction
    metrics = {
        **values,
        "reconstruction_loss": loss,
        **kl,
        "total_loss": weighted_sum([(1.0, loss), *((recipe.kl.weight, value) for value in kl.values())]),
        "si_sdr_db": -si_sdr(prediction=reconstruction, target=audio),
    }
    return lax.pmean(metrics, AXIS), reconstruction


def _kl(output, recipe):
    """Return the KL term as a metric; none without a posterior."""
    return {} if recipe.model.posterior == "none" else {"kl_loss": recipe.kl(output.mean, output.logvar)}


class _Update(NamedTuple):
    params: Any
    opt_state: Any
    grad_norm: jax.Array
    skipped: jax.Array


def _update(optimizer, gradient, opt_state, params, step, *, every: int, loss_is_finite) -> _Update:
    """An update at steps divisible by `every`; unchanged parameters and state at others, or if it is not finite.

    `loss_is_finite` and, after pmean, the gradient's norm are the same on every device.
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
    """1 where every element is finite, else 0; float32, so that it can be averaged over devices."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays])).astype(jnp.float32)


def latent_noise(recipe, step, audio):
    """Standard normal `[b, frames, latent_dim]`: a function of only (seed, step, row of the global batch)."""
    b, t, _ = audio.shape
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), 1), step)
    rows = lax.axis_index(AXIS) * b + jnp.arange(b)
    shape = (recipe.model.frames(t), recipe.model.latent_dim)
    return jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), shape))(rows)


def _varying(tree):
    return jax.tree.map(lambda x: lax.pcast(x, AXIS, to="varying"), tree)
