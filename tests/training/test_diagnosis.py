"""The statistics, compared with their definitions."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax import AdversarialLossCalculator, AudioVAE, losses
from audiovae_jax.distributed import mesh
from audiovae_jax.losses import WeightedLosses, adversarial
from audiovae_jax.losses.kl import KLTerm
from audiovae_jax.training import diagnosis, step
from audiovae_jax.training.gan_health import Figures
from audiovae_jax.training.optimizer import Optimizer
from audiovae_jax.training.state import create_train_state

ADAMW = {"learning_rate": 1e-3, "final_learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8}


class TwoParts(nn.Module):
    """A custom discriminator. One part sees the audio. The other has fixed logits and constant maps."""

    @nn.compact
    def __call__(self, audio):
        x = nn.leaky_relu(nn.Conv(4, (7,), strides=3)(audio))
        return [nn.Conv(1, (3,))(x), jnp.full((audio.shape[0], 5), -2.0)], [[x], [jnp.ones((1, 2))]]


def _recipe(**calculator):
    optimizer = Optimizer(num_steps=10, weight_decay=0.0, clip_norm=1.0, **ADAMW)
    return step.Recipe(
        model=AudioVAE(base_channels=4, channel_mults=(1,), strides=(4,), latent_dim=3, dilations=(1,)),
        losses=WeightedLosses((("l1", 2.0, losses.waveform_l1),)),
        kl=KLTerm(weight=1e-2, warmup_steps=0),
        optimizer=optimizer,
        discriminator=TwoParts(),
        adversarial=AdversarialLossCalculator(**calculator),
        discriminator_optimizer=optimizer,
    )


def _diagnosed(recipe, devices=2, change=lambda state: state):
    devices = mesh.make_mesh(jax.devices()[:devices])
    create = functools.partial(create_train_state, recipe, (1, 64, 2))
    state = change(jax.jit(create, out_shardings=mesh.replicated(devices))())
    audio = np.random.default_rng(0).standard_normal((4, 64, 2)).astype(np.float32)
    per_device = functools.partial(diagnosis.diagnose, recipe=recipe, adversarial=True)
    figures = mesh.map_devices(per_device, devices, jax.P())(state, mesh.place_batch(devices, audio))
    return Figures.of([jax.device_get(figures)]), jax.device_get(state), audio


@pytest.mark.slow
def test_the_figures_are_those_of_their_definitions():
    recipe = _recipe(adversarial_weight=3.0, feature_matching_weight=5.0)
    figures, state, audio = _diagnosed(recipe)
    apply = jax.jit(lambda audio: recipe.model.apply(state.variables, audio, deterministic=True))
    posterior = apply(audio)
    kl = -0.5 * (1 + posterior.logvar - posterior.mean**2 - np.exp(posterior.logvar))
    np.testing.assert_allclose(figures.kl_per_channel, kl.mean(axis=(0, 1)), rtol=1e-4)
    np.testing.assert_allclose(figures.variance_per_channel, np.var(posterior.mean, axis=(0, 1)), rtol=1e-3)
    # The second part classifies everything as generated.
    assert figures.d_real_acc[1] == 0
    assert figures.d_fake_acc[1] == 1
    assert figures.d_loss[1] == pytest.approx(3.0)
    assert 0 < figures.d_loss[0] < 4

    noise = jax.vmap(
        lambda row: jax.random.normal(
            jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0), row), (16, 3)
        )
    )(jnp.arange(4))
    fake = jax.jit(lambda audio: recipe.model.apply(state.variables, audio, noise=noise).reconstruction)(audio)
    judge = functools.partial(recipe.discriminator.apply, {"params": state.discriminator_params})

    @jax.jit
    def norms(fake):
        terms = (
            lambda fake: 2.0 * losses.waveform_l1(prediction=fake, target=audio),
            lambda fake: 3.0 * adversarial.generator_hinge(judge(fake)[0]),
            lambda fake: 5.0 * adversarial.feature_matching(judge(audio)[1], judge(fake)[1]),
        )
        values, gradients = zip(*(jax.value_and_grad(term)(fake) for term in terms), strict=True)
        return jnp.stack(values), jnp.stack([jnp.linalg.norm(gradient) for gradient in gradients])

    values, (reconstruction, hinge, matching) = norms(fake)
    assert figures.adversarial_gradient_ratio == pytest.approx(float(hinge / reconstruction), rel=1e-3)
    assert figures.feature_matching_gradient_ratio == pytest.approx(float(matching / reconstruction), rel=1e-3)
    kl_loss = 1e-2 * kl.sum(axis=(1, 2)).mean()
    expected = values[2] / (np.abs(values).sum() + kl_loss)
    assert figures.feature_matching_share == pytest.approx(float(expected), rel=1e-2)


@pytest.mark.slow
@pytest.mark.slow
def test_a_model_without_a_posterior_has_no_divergence():
    recipe = _recipe(adversarial_weight=3.0, feature_matching_weight=5.0)
    size = {"base_channels": 4, "channel_mults": (1,), "strides": (4,), "latent_dim": 3, "dilations": (1,)}
    # A weight that would count: only configs refuse it.
    certain = dataclasses.replace(recipe, model=AudioVAE(**size, posterior="none"))
    figures, _, _ = _diagnosed(certain)
    assert figures.kl_per_channel.size == 0
    assert figures.variance_per_channel.shape == (3,)
    off, _, _ = _diagnosed(dataclasses.replace(certain, kl=KLTerm(weight=0.0)))
    assert figures.feature_matching_share == off.feature_matching_share > 0


@pytest.mark.slow
def test_silent_feature_matching_and_an_idle_decoder_are_zeros():
    def deaf(state):
        first = state.params["decoder"]["input_conv"]
        decoder = {**state.params["decoder"], "input_conv": {**first, "g": jnp.zeros_like(first["g"])}}
        return state.replace(params={**state.params, "decoder": decoder})

    figures, _, _ = _diagnosed(_recipe(feature_matching_weight=0.0), change=deaf)
    assert figures.latent_effect < 1e-6
    assert figures.feature_matching_gradient_share == 0
    assert figures.feature_matching_share == 0
    heard, _, _ = _diagnosed(_recipe())
    assert heard.latent_effect > 0.1
    assert heard.feature_matching_gradient_share > 0.01
