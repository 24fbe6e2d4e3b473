"""The joint pass of our discriminators, compared with the separate passes of any module."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import initialised
from small_step import assert_trees_close, batch

from audiovae_jax import AdversarialLossCalculator, discriminators
from audiovae_jax.discriminators.base import takes_known_maps
from audiovae_jax.training import adversarial

_SMALL = {"n_ffts": (64, 32), "msd_scales": (1, 2), "mpd_periods": (2, 3), "mpd_channels": (2, 4)}


class _Any(nn.Module):
    """Calls another discriminator, as a custom one may."""

    inner: nn.Module

    def __call__(self, audio):
        return self.inner(audio)


class _Louder(discriminators.MultiPeriodDiscriminator):
    def __call__(self, audio):
        return super().__call__(2 * audio)


def _gradients(discriminator, params, real, fake):
    def run(params, real, fake):
        found = adversarial.adversarial_pass(discriminator, AdversarialLossCalculator(1.0, 10.0), params, real, fake)
        return found.generator, found.discriminator, found.audio_gradient(), found.params_gradient(jnp.zeros(()))

    return jax.jit(run)(params, real, fake)


@pytest.mark.parametrize(
    ("discriminator", "channels"),
    [
        pytest.param(
            discriminators.EnCodecDiscriminator(2, use_mel_stft=True, mel_stft_filters=2, mel_stft_n_ffts=(64,),
                                                mel_stft_n_mels=(4,), **_SMALL), 2, marks=pytest.mark.slow),
        pytest.param(
            discriminators.EnCodecDiscriminator(2, in_channels=1, use_msd=False, use_mpd=False, n_ffts=(64,)), 1,
            marks=pytest.mark.slow),
        pytest.param(
            discriminators.BandSplitDiscriminator(64, 16, ((0, 16), (16, 33))), 1, marks=pytest.mark.slow),
        (discriminators.MultiScaleSTFTDiscriminator(2, n_ffts=(64,)), 2),
    ],
    ids=["ensemble", "mono", "band", "stft"],
)  # fmt: skip
def test_together_is_apart(discriminator, channels):
    rng = np.random.default_rng(0)
    real, fake = jnp.asarray(rng.uniform(-0.5, 0.5, (2, 3, 512, channels)), jnp.float32)
    params = initialised(discriminator, real)["params"]
    assert takes_known_maps(discriminator)
    together = _gradients(discriminator, params, real, fake)
    apart = _gradients(_Any(discriminator), {"inner": params}, real, fake)
    assert not takes_known_maps(_Any(discriminator))
    apart = (*apart[:3], apart[3]["inner"])
    for ours, theirs in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-6 * max(1, float(jnp.abs(theirs).max())))


@pytest.mark.slow
def test_remat_changes_neither_parameters_nor_gradients():
    plain = discriminators.MultiScaleSTFTDiscriminator(2, n_ffts=(64,))
    saving = plain.clone(remat=True)
    real, fake = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1, 512, 2)), jnp.float32)
    params = initialised(plain, real)["params"]
    expected, got = (_gradients(discriminator, params, real, fake) for discriminator in (plain, saving))
    assert jax.tree.structure(initialised(saving, real)["params"]) == jax.tree.structure(params)
    for ours, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6 * max(1, float(jnp.abs(theirs).max())))


@pytest.mark.slow
def test_a_discriminator_called_in_another_way_is_called():
    discriminator = _Louder((2,), channels=(2, 4))
    assert not takes_known_maps(discriminator)
    real, fake = jnp.asarray(np.random.default_rng(0).uniform(-0.5, 0.5, (2, 1, 128, 2)), jnp.float32)
    params = initialised(discriminator, real)["params"]
    louder = _gradients(discriminator, params, real, fake)
    plain = _gradients(discriminators.MultiPeriodDiscriminator((2,), channels=(2, 4)), params, 2 * real, 2 * fake)
    np.testing.assert_allclose(louder[1]["d_loss"], plain[1]["d_loss"], rtol=1e-6)
    np.testing.assert_allclose(louder[2], 2 * plain[2], atol=1e-6)


@pytest.mark.slow
def test_gradient_penalties_reach_the_discriminator_only():
    """Through every kind of sub-discriminator, whose operations must be differentiable twice."""
    real, fake = (jnp.asarray(batch(seed, size=2)) for seed in (0, 1))
    discriminator = discriminators.EnCodecDiscriminator(
        stft_filters=2, n_ffts=(64,), msd_scales=(1,), mpd_periods=(2,), mpd_channels=(2, 4), use_mel_stft=True,
        mel_stft_filters=2, mel_stft_n_ffts=(64,), mel_stft_n_mels=(8,),
    )  # fmt: skip
    params = jax.jit(discriminator.init)(jax.random.key(0), real)["params"]
    plain, penalized = AdversarialLossCalculator(), AdversarialLossCalculator(r1_weight=10.0, r2_weight=10.0)

    def penalty(params):
        return penalized.penalty(lambda audio: discriminator.apply({"params": params}, audio), real, fake)

    @jax.jit
    def run(params):
        passes = [adversarial.adversarial_pass(discriminator, each, params, real, fake) for each in (plain, penalized)]
        gradients = [each.params_gradient(jnp.zeros(())) for each in passes]
        audio = [each.audio_gradient() for each in passes]
        return [each.discriminator for each in passes], gradients, audio, jax.grad(penalty)(params)

    (without, values), gradients, audio, expected = run(params)
    np.testing.assert_array_equal(audio[0], audio[1])
    assert values["gradient_penalty"] > 0
    np.testing.assert_allclose(values["d_loss"], without["d_loss"] + values["gradient_penalty"], rtol=1e-5)
    difference = jax.tree.map(jnp.subtract, gradients[1], gradients[0])
    assert_trees_close(difference, expected, rtol=1e-3)
    # By finite differences along the gradient, in the penalty itself.
    norm = float(optax.tree.norm(expected))
    step = 1e-3 / norm
    moved = [jax.tree.map(lambda p, g, s=sign: p + s * step * g, params, expected) for sign in (1, -1)]
    slope = float(jax.jit(penalty)(moved[0]) - jax.jit(penalty)(moved[1])) / (2 * step)
    assert slope == pytest.approx(norm**2, rel=2e-2)
