import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audiovae_jax.training.optimizer import adamw, learning_rate_schedule

OPTIONS = {"num_steps": 100, "learning_rate": 1e-2, "final_learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8}


def test_the_learning_rate_is_a_cosine_between_its_ends():
    schedule = learning_rate_schedule(100, 1e-2, 1e-3)
    for step, expected in ((0, 1e-2), (50, 5.5e-3), (100, 1e-3), (1000, 1e-3)):
        assert float(schedule(step)) == pytest.approx(expected, rel=1e-5)


def test_equal_ends_are_a_constant_rate():
    schedule = learning_rate_schedule(100, 1e-2, 1e-2)
    assert schedule(0) == schedule(50) == schedule(1000) == 1e-2


def test_an_update_is_adams_and_decays_every_parameter():
    optimizer = adamw(**OPTIONS, weight_decay=0.1, clip_norm=0.0)
    params = {"w": jnp.array([2.0, -4.0])}
    updates, _ = optimizer.update({"w": jnp.array([1.0, -3.0])}, optimizer.init(params), params, step=50)
    # The first step of Adam is the gradient's sign, whatever its size.
    np.testing.assert_allclose(updates["w"], -5.5e-3 * (np.array([1.0, -1.0]) + 0.1 * np.array([2.0, -4.0])), rtol=1e-5)


def test_the_rate_follows_the_step_and_not_the_count_of_updates():
    optimizer = adamw(**OPTIONS, weight_decay=0.0, clip_norm=0.0)
    params = {"w": jnp.ones(2)}
    state = optimizer.init(params)
    early, _ = optimizer.update({"w": jnp.ones(2)}, state, params, step=0)
    late, _ = optimizer.update({"w": jnp.ones(2)}, state, params, step=100)
    np.testing.assert_allclose(early["w"] / late["w"], 10.0, rtol=1e-5)


def test_clipping_bounds_the_global_norm_and_keeps_the_direction():
    optimizer = adamw(**OPTIONS, weight_decay=0.0, clip_norm=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    _, state = optimizer.update(
        {"a": jnp.array([30.0]), "b": jnp.array([40.0])}, optimizer.init(params), params, step=0
    )
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose([moments["a"][0], moments["b"][0]], [0.1 * 0.6, 0.1 * 0.8], rtol=1e-5)
