"""The training and validation steps: pure functions of one device, meant for a mesh axis `data`.

One forward pass of the model and one of the discriminator on real and on generated audio serve both
updates: the losses are taken on their outputs, and each pass is pulled back once per loss that needs
it. The discriminator trains on the very reconstruction that the generator is judged by.
"""

import dataclasses
from typing import Any

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
from audiovae_jax.training.adversarial import judge
from audiovae_jax.training.optimizer import AdamW
from audiovae_jax.training.state import TrainState, split_trainable

# Names of metrics that a loss of one's own cannot have.
RESERVED_METRICS = (
    "reconstruction_loss", "kl_loss", "kl_weight", "total_g_loss", "total_loss", "best_total_loss", "si_sdr_db",
    "g_adv_loss", "feature_matching_loss", "d_loss", "d_real_acc", "d_fake_acc", "g_grad_norm", "d_grad_norm",
    "g_skipped", "d_skipped", "skipped_g_updates", "skipped_d_updates",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What a step is made of; static under jit, but for the numbers that `scalars` puts in their places.

    Attributes:
      model: the generator.
      losses: reconstruction losses.
      kl: the KL term.
      optimizer: of the model.
      discriminator: a linen module `audio -> (logits, feature_maps)`, or None.
      adversarial: weighs the adversarial losses; None without a discriminator.
      discriminator_optimizer: None without a discriminator.
      generator_update_every: while the discriminator is active, the model is updated at steps
        divisible by this.
      discriminator_update_every: likewise for the discriminator.
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
    """One step on one device's share of the batch.

    Must run under a mapped axis named `data` (`jax.shard_map`, `jax.pmap`).

    An update whose loss or gradient is NaN or infinite, on any device, is skipped on all of them: it leaves
    its network's parameters and optimizer state, Adam's count included, as they are, and is told in the
    metrics `g_skipped` and `d_skipped`. Each network decides for itself, but both are skipped where the
    audio or its reconstruction is not finite, since the discriminator learns from these too. `step` counts
    batches, and goes on.

    Args:
      state: the same on every device.
      audio: `[b, T, C]`, this device's rows of the global batch.
      recipe: what to compute.
      adversarial: whether the discriminator takes part; False before `warmup_steps`.

    Returns:
      The new state and scalar metrics, the same on every device; after a skip they are what was not finite.
    """
    # Marked as differing between devices, so that their gradients stay local until the mean below:
    # the gradient of a replicated value would already be a sum over devices.
    trainable, frozen = split_trainable(state.params, recipe.model.encoder_frozen)
    varying, discriminator_params = _varying((trainable, state.discriminator_params))
    noise = latent_noise(recipe, state.step, audio)

    def reconstruct(trainable):
        params = {**trainable, **frozen}
        variables = {"params": params, "latent_statistics": state.latent_statistics}
        return recipe.model.apply(variables, audio, noise=noise)

    output, pull_back_model = jax.vjp(reconstruct, varying)
    kl_weight = recipe.kl.weight_at(state.step)

    def objective(output: Reconstruction):
        loss, values = recipe.losses(prediction=output.reconstruction, target=audio)
        kl_loss = recipe.kl(output.mean, output.logvar)
        metrics = {**values, "reconstruction_loss": loss, "kl_loss": kl_loss}
        return weighted_sum([(1.0, loss), (kl_weight, kl_loss)]), metrics

    (loss, metrics), cotangent = jax.value_and_grad(objective, has_aux=True)(output)
    update_model = update_discriminator = None
    if adversarial:
        verdict = judge(recipe.discriminator, recipe.adversarial, discriminator_params, audio, output.reconstruction)
        of_generator = verdict.generator
        loss += of_generator["total_adv_loss"]
        metrics |= {
            "g_adv_loss": of_generator["g_adv_loss"],
            "feature_matching_loss": of_generator["fm_loss"],
            **verdict.discriminator,
        }
        update_model = state.step % recipe.generator_update_every == 0 if recipe.generator_update_every > 1 else None
        if recipe.discriminator_update_every > 1:
            update_discriminator = state.step % recipe.discriminator_update_every == 0

    # Known on every device before the updates, which they decide on.
    metrics = lax.pmean({**metrics, "total_g_loss": loss, "finite": _is_finite(audio, output.reconstruction)}, AXIS)
    batch_is_finite = metrics.pop("finite") == 1

    def model_gradient():
        total = cotangent
        if adversarial:
            total = total._replace(reconstruction=total.reconstruction + verdict.audio_gradient())
        return pull_back_model(total)[0]

    trainable, opt_state, metrics["g_grad_norm"], metrics["g_skipped"] = _update(
        recipe.optimizer,
        model_gradient,
        state.opt_state,
        trainable,
        state.step,
        update_model,
        batch_is_finite & jnp.isfinite(metrics["total_g_loss"]),
    )
    state = state.replace(params={**trainable, **frozen}, opt_state=opt_state)
    if adversarial:
        params, opt_state, metrics["d_grad_norm"], metrics["d_skipped"] = _update(
            recipe.discriminator_optimizer,
            lambda: verdict.params_gradient(metrics["g_grad_norm"]),
            state.discriminator_opt_state,
            state.discriminator_params,
            state.step,
            update_discriminator,
            batch_is_finite & jnp.isfinite(metrics["d_loss"]),
        )
        state = state.replace(discriminator_params=params, discriminator_opt_state=opt_state)
    return state.replace(step=state.step + 1), {**metrics, "kl_weight": jnp.asarray(kl_weight, jnp.float32)}


def validation_step(variables: dict, audio: jax.Array, *, recipe: Recipe) -> tuple[dict[str, jax.Array], jax.Array]:
    """The objective on one device's share of a validation batch, under a mapped axis `data`.

    It is the objective of training without the discriminator, with noise that is the same at every
    validation and the KL term at its final weight: one measure for the whole run, whatever the
    warm-ups do. `si_sdr_db` and the reconstruction are of the posterior's mean, which is what a
    trained model is used with.

    Returns:
      Scalar metrics (the same on every device) and this device's reconstruction `[b, T, C]`.
    """
    output = recipe.model.apply(variables, audio, noise=latent_noise(recipe, 0, audio))
    loss, values = recipe.losses(prediction=output.reconstruction, target=audio)
    kl_loss = recipe.kl(output.mean, output.logvar)
    reconstruction = recipe.model.apply(variables, audio, deterministic=True).reconstruction
    metrics = {
        **values,
        "reconstruction_loss": loss,
        "kl_loss": kl_loss,
        "total_loss": weighted_sum([(1.0, loss), (recipe.kl.weight, kl_loss)]),
        "si_sdr_db": -si_sdr(prediction=reconstruction, target=audio),
    }
    return lax.pmean(metrics, AXIS), reconstruction


def _update(
    optimizer, gradient, opt_state, params, step, condition, loss_is_finite
) -> tuple[Any, Any, jax.Array, jax.Array]:
    """`(params, opt_state, gradient norm, skipped)` after an update; unchanged where it is not due or not finite.

    Args:
      condition: whether it is due; None for always.
      loss_is_finite: the same on every device, as the gradient's norm is after the mean.
    """

    def apply():
        grads = lax.pmean(gradient(), AXIS)
        norm = optax.tree.norm(grads)
        is_whole = loss_is_finite & jnp.isfinite(norm)
        updates, new_opt_state = optimizer.update(grads, opt_state, params, step=step, apply=is_whole)
        new = optax.apply_updates(params, updates)
        kept = jax.tree.map(lambda new, old: jnp.where(is_whole, new, old), new, params)
        return kept, new_opt_state, norm, ~is_whole

    if condition is None:
        return apply()
    return lax.cond(condition, apply, lambda: (params, opt_state, jnp.zeros((), jnp.float32), jnp.zeros((), bool)))


def _is_finite(*arrays) -> jax.Array:
    """1 where every element is finite, else 0; float32, so that it can be averaged over devices."""
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(array)) for array in arrays])).astype(jnp.float32)


def latent_noise(recipe, step, audio):
    """Standard normal `[b, frames, latent_dim]`: a function of (seed, step, row of the global batch) alone."""
    b, t, _ = audio.shape
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(recipe.seed), 1), step)
    rows = lax.axis_index(AXIS) * b + jnp.arange(b)
    shape = (recipe.model.frames(t), recipe.model.latent_dim)
    return jax.vmap(lambda row: jax.random.normal(jax.random.fold_in(key, row), shape))(rows)


def _varying(tree):
    return jax.tree.map(lambda x: lax.pcast(x, AXIS, to="varying"), tree)
