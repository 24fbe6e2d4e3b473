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
    with pytest.raises(ValueError, match="loss='wgan' is unknown; use one of hinge, least_squares, relativistic"):
        AdversarialLossCalculator(loss="wgan")


@pytest.mark.parametrize(
    ("loss", "g_adv_loss", "d_loss", "accuracies"),
    [
        ("least_squares", 1.25**2, 0.5**2 + 0.25**2, (0.0, 1.0)),  # a logit of 0.5 lies on the boundary
        ("relativistic", np.log1p(np.exp(0.75)), np.log1p(np.exp(-0.75)), (1.0, 1.0)),
    ],
)
def test_other_losses_in_closed_form(loss, g_adv_loss, d_loss, accuracies):
    calculator = AdversarialLossCalculator(loss=loss, adversarial_weight=2.0, feature_matching_weight=0.0)
    g = calculator.compute_generator_loss(discriminator, REAL, FAKE, global_step=0)
    assert g["g_adv_loss"] == pytest.approx(g_adv_loss)
    assert g["total_adv_loss"] == pytest.approx(2 * g_adv_loss)
    d = calculator.compute_discriminator_loss(discriminator, REAL, FAKE)
    assert d["d_loss"] == pytest.approx(d_loss)
    assert (d["d_real_acc"], d["d_fake_acc"]) == accuracies
    each = adversarial.by_discriminator(discriminator(REAL)[0], discriminator(FAKE)[0], loss)
    assert each["d_loss"] == pytest.approx(d_loss)
    assert (each["d_real_acc"], each["d_fake_acc"]) == accuracies


def test_relativistic_pairs_count_where_real_is_above_fake_at_any_level():
    real, fake = [jnp.asarray([3.0, -1.0, 5.0, 0.0])], [jnp.asarray([2.0, -2.0, 6.0, 0.0])]
    assert adversarial.accuracies(real, fake, "relativistic") == (0.5, 0.5)


@pytest.mark.parametrize("loss", adversarial.LOSSES)
def test_the_generators_gradient_raises_the_fake_logits_only(loss):
    calculator = AdversarialLossCalculator(loss=loss, feature_matching_weight=0.0)

    def total(real, fake):
        return calculator.compute_generator_loss(discriminator, real, fake, 0)["total_adv_loss"]

    to_real, to_fake = jax.grad(total, argnums=(0, 1))(REAL, FAKE)
    assert (to_fake < 0).all()
    assert (to_real == 0).all()


def test_the_ramp_raises_both_weights_linearly_after_the_warm_up():
    constant = AdversarialLossCalculator(2.0, 4.0, warmup_steps=10)
    assert constant.at(3) is constant
    calculator = AdversarialLossCalculator(2.0, 4.0, warmup_steps=10, ramp_steps=100)
    traced = jax.jit(lambda step: calculator.compute_generator_loss(discriminator, REAL, FAKE, step)["total_adv_loss"])
    for step, share in ((9, 0), (10, 0), (35, 0.25), (110, 1), (500, 1)):
        total = calculator.compute_generator_loss(discriminator, REAL, FAKE, step)["total_adv_loss"]
        assert total == pytest.approx(share * (2 * 0.25 + 4 * 0.75)), step
        assert traced(step) == pytest.approx(share * (2 * 0.25 + 4 * 0.75)), step
    without = AdversarialLossCalculator(0.0, 4.0, ramp_steps=100).at(50)
    assert without.adversarial_weight == 0
    assert without.feature_matching_weight == pytest.approx(2.0)


def test_the_gradient_penalty_of_a_linear_discriminator_is_the_square_of_its_weights():
    weights = jnp.asarray(np.random.default_rng(0).standard_normal((8, 2)), jnp.float32)

    def discriminator(audio):
        scores = jnp.sum(weights * audio, axis=(1, 2))
        return [scores[:, None], 3 * scores[:, None]], []

    audio = jnp.asarray(np.random.default_rng(1).standard_normal((4, 8, 2)), jnp.float32)
    expected = 4 * float(jnp.sum(weights**2))  # of the average of both logits
    assert float(adversarial.gradient_penalty(discriminator, audio)) == pytest.approx(expected, rel=1e-5)
    plain, penalized = AdversarialLossCalculator(), AdversarialLossCalculator(r1_weight=0.5, r2_weight=0.1)
    losses = penalized.compute_discriminator_loss(discriminator, audio, -audio)
    assert float(losses["gradient_penalty"]) == pytest.approx(0.3 * expected, rel=1e-5)
    without = plain.compute_discriminator_loss(discriminator, audio, -audio)
    assert float(losses["d_loss"] - without["d_loss"]) == pytest.approx(0.3 * expected, rel=1e-4)
