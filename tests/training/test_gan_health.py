"""Warnings from given statistics; the statistics are tested with `diagnosis`."""

import dataclasses

import numpy as np
import pytest

from audiovae_jax.training.gan_health import CONSECUTIVE_CHECKS, Figures, GanHealth

WELL = Figures(
    kl_per_channel=np.array([2.0, 0.5, 0.0, 1.0]),
    variance_per_channel=np.array([1.0, 0.2, 0.005, 0.5]),
    latent_effect=0.9,
    d_loss=np.array([1.5, 1.0]),
    d_real_acc=np.array([0.8, 0.9]),
    d_fake_acc=np.array([0.7, 1.0]),
    feature_matching_share=0.2,
    adversarial_gradient_ratio=0.1,
    feature_matching_gradient_ratio=0.5,
    feature_matching_gradient_share=0.3,
)
ILL = {
    "posterior_collapsed": {"variance_per_channel": np.full(4, 1e-4), "kl_per_channel": np.full(4, 0.01)},
    "latent_ignored": {"latent_effect": 0.001},
    "discriminator_saturated": {
        "d_loss": np.array([0.001, 0.0]), "d_real_acc": np.ones(2), "d_fake_acc": np.array([1.0, 0.995]),
    },
    "feature_matching_silent": {"feature_matching_gradient_share": 0.0},
}  # fmt: skip


def test_figures_are_the_means_over_batches():
    zero, one = np.zeros(2), np.ones(2)
    batch = {"square": 4.0, "change_square": 1.0, "kl_per_channel": zero, "mean": zero, "mean_square": one}
    gan = {"d_loss": zero, "d_real_acc": one, "d_fake_acc": one, "feature_matching_share": 0.5}
    gradients = {"reconstruction_gradient": 4.0, "adversarial_gradient": 1.0, "feature_matching_gradient": 25.0}
    other = {**batch, "kl_per_channel": one, "mean": np.array([0.0, 2.0]), "mean_square": np.array([1.0, 5.0])}
    figures = Figures.of([{**batch, **gan, **gradients}, {**other, **gan, **gradients}])
    np.testing.assert_allclose(figures.kl_per_channel, 0.5)
    np.testing.assert_allclose(figures.variance_per_channel, [1.0, 2.0])  # 3 - 1 of the second, not the mean of 1 and 1
    assert figures.latent_effect == pytest.approx(0.5)
    assert figures.adversarial_gradient_ratio == pytest.approx(0.5)
    assert figures.feature_matching_gradient_ratio == pytest.approx(2.5)
    assert figures.feature_matching_gradient_share == pytest.approx(5 / 8)
    alone = Figures.of([batch, other])
    assert alone.feature_matching_share is None
    assert not any(name.startswith(("health_d", "health/feature")) for name in alone.metrics())


def test_a_model_without_a_posterior_has_no_divergence_and_cannot_collapse():
    batch = {"square": 4.0, "change_square": 1.0, "mean": np.zeros(2), "mean_square": np.full(2, 1e-4)}
    figures, said = Figures.of([batch]), []
    health = GanHealth(said.append, 0)
    for step in range(2 * CONSECUTIVE_CHECKS):
        metrics, _ = health.check(step, figures)
    assert said == []
    assert not any(name.startswith("health_kl/") for name in metrics)
    assert metrics["health/posterior_collapsed"] == 0


def test_metrics_name_every_channel_and_every_part():
    metrics = WELL.metrics()
    assert metrics["health/active_channels"] == 3
    assert metrics["health_kl/channel_01"] == 0.5
    assert metrics["health_d_fake_acc/01"] == 1.0
    assert metrics["health/adversarial_gradient_ratio"] == 0.1
    assert all(isinstance(value, float) for value in metrics.values())


@pytest.mark.parametrize("name", ILL)
def test_a_warning_is_given_once_per_period_of_its_sign(name):
    said = []
    health = GanHealth(said.append, 0)
    ill = dataclasses.replace(WELL, **ILL[name])
    for step in range(CONSECUTIVE_CHECKS - 1):
        metrics, warnings = health.check(step, ill)
        assert not said
        assert not warnings
        assert metrics[f"health/{name}"] == 0
    metrics, warnings = health.check(7, ill)
    assert metrics[f"health/{name}"] == 1
    assert said == [f"warning: step 7: {warnings[0]}"]
    assert "; try " in said[0]
    health.check(8, WELL)  # one good check is not a recovery
    assert health.check(9, ill)[1] == []
    for step in range(CONSECUTIVE_CHECKS):
        metrics, _ = health.check(step, WELL)
    assert metrics[f"health/{name}"] == 0
    for step in range(CONSECUTIVE_CHECKS):
        health.check(step, ill)
    assert len(said) == 2


def test_a_healthy_run_gets_no_warning():
    said = []
    health = GanHealth(said.append, 0)
    alone = dataclasses.replace(
        WELL, d_loss=np.zeros(0), d_real_acc=np.zeros(0), d_fake_acc=np.zeros(0), feature_matching_share=None,
        adversarial_gradient_ratio=None, feature_matching_gradient_ratio=None, feature_matching_gradient_share=None,
    )  # fmt: skip
    for step in range(2 * CONSECUTIVE_CHECKS):
        health.check(step, WELL)
        health.check(step, alone)
    assert not said


def test_a_part_that_is_saturated_among_others_that_are_not_is_no_warning():
    figures = dataclasses.replace(WELL, d_loss=np.array([0.0, 1.0]), d_real_acc=np.ones(2), d_fake_acc=np.ones(2))
    assert figures.saturated.tolist() == [True, False]
    said = []
    health = GanHealth(said.append, 0)
    for step in range(2 * CONSECUTIVE_CHECKS):
        health.check(step, figures)
    assert not said


def test_the_latent_is_not_checked_during_its_warm_up_nor_only_by_its_scale():
    said = []
    health = GanHealth(said.append, 100)
    ill = dataclasses.replace(WELL, **ILL["posterior_collapsed"], **ILL["latent_ignored"])
    for step in (10, 20, 30, 40):
        health.check(step, ill)
    assert not said
    small = dataclasses.replace(WELL, variance_per_channel=np.full(4, 1e-4))  # and its deviation is smaller still
    assert (small.active_channels, small.informative_channels) == (0, 3)
    for step in (100, 110, 120):
        health.check(step, small)
    assert not said
    for step in (130, 140, 150):
        health.check(step, ill)
    assert [line.split(":")[1] for line in said] == [" step 150"] * 2
