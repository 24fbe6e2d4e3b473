import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax import AdversarialLossCalculator
from audiovae_jax.losses import adversarial


def discriminator(audio):
    """Logits are the mean, the feature map the audio itself."""
    return [jnp.mean(audio, axis=(1, 2))], [[audio]]


REAL, FAKE = jnp.full((1, 4, 1), 0.5), jnp.full((1, 4, 1), -0.25)


def test_values_in_closed_form():
    calculator = AdversarialLossCalculator(adversarial_weight=2.0, feature_matching_weight=4.0)
    g = calculator.compute_generator_loss(discriminator, REAL, FAKE, global_step=0)
    assert g["g_adv_loss"] == pytest.approx(0.25)
    assert g["fm_loss"] == pytest.approx(0.75)
    assert g["total_adv_loss"] == pytest.approx(2 * 0.25 + 4 * 0.75)
    assert g["is_active"]
    d = calculator.compute_discriminator_loss(discriminator, REAL, FAKE)
    assert d["d_loss"] == pytest.approx(0.5 + 0.75)
    assert (d["d_real_acc"], d["d_fake_acc"]) == (1.0, 1.0)


def test_the_feature_matching_gradient_reaches_the_fake_audio_and_not_the_real():
    calculator = AdversarialLossCalculator(adversarial_weight=0.0, feature_matching_weight=1.0)

    def loss(real, fake):
        return calculator.compute_generator_loss(discriminator, real, fake, 0)["total_adv_loss"]

    to_real, to_fake = jax.grad(loss, argnums=(0, 1))(REAL, FAKE)
    np.testing.assert_allclose(to_fake, -0.25)
    assert (to_real == 0).all()


def test_the_discriminator_loss_gives_the_generator_no_gradient():
    grad = jax.grad(
        lambda fake: AdversarialLossCalculator().compute_discriminator_loss(discriminator, REAL, fake)["d_loss"]
    )(FAKE)
    assert (grad == 0).all()


def test_warm_up_skips_the_discriminator_for_an_int_and_zeroes_it_when_traced():
    calculator = AdversarialLossCalculator(warmup_steps=10)

    def never(audio):
        raise AssertionError("the discriminator was called during warm-up")

    assert calculator.compute_generator_loss(never, REAL, FAKE, 9)["total_adv_loss"] == 0
    traced = jax.jit(lambda s: calculator.compute_generator_loss(discriminator, REAL, FAKE, s))
    assert traced(9)["total_adv_loss"] == 0
    assert traced(10)["total_adv_loss"] == pytest.approx(0.25 + 10 * 0.75)
    assert not calculator.is_active(9)
    assert calculator.is_active(10)


def test_sub_discriminators_have_equal_weight_for_any_size():
    real, fake = [jnp.ones(3), jnp.ones(1000)], [jnp.zeros(3), 2 * jnp.ones(1000)]
    assert adversarial.discriminator_hinge(real, fake) == pytest.approx((1 + 3) / 2)
    assert adversarial.generator_hinge(fake) == pytest.approx(-1.0)


def test_negative_weights_are_refused():
    with pytest.raises(ValueError, match="adversarial_weight=-1"):
        AdversarialLossCalculator(adversarial_weight=-1)
