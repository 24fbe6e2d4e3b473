import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax.ops.activations import snake, snake_beta

ALPHA = np.array([0.5, 1.0, 2.0, 7.3])


def _reference(x, alpha):
    """Return the result in float64, from the float32 product that the function computes."""
    u = (x * alpha.astype(np.float32)).astype(np.float64)
    return x + np.sin(u) ** 2 / (alpha + 1e-8), u


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3, 1e5])
def test_it_is_its_formula_to_rounding(scale):
    x = scale * np.random.default_rng(0).standard_normal((50, 200, 4)).astype(np.float32)
    expected, _ = _reference(x, ALPHA)
    actual = jax.jit(snake)(x, ALPHA.astype(np.float32))
    np.testing.assert_allclose(actual, expected, rtol=2e-7, atol=1e-6)


def test_its_gradients_are_those_of_the_formula():
    rng = np.random.default_rng(1)
    x, g = (3 * rng.standard_normal((2, 300, 4)).astype(np.float32) for _ in range(2))
    _, pull_back = jax.vjp(snake, jnp.asarray(x), jnp.asarray(ALPHA, jnp.float32))
    dx, dalpha = pull_back(jnp.asarray(g))
    _, u = _reference(x, ALPHA)
    np.testing.assert_allclose(dx, g * (1 + np.sin(2 * u)), rtol=1e-5, atol=1e-5)
    by_alpha = x * np.sin(2 * u) / ALPHA - np.sin(u) ** 2 / ALPHA**2
    np.testing.assert_allclose(dalpha, (g * by_alpha).sum((0, 1)), rtol=1e-4)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0, 1e3])
def test_snake_beta_and_its_gradients_are_those_of_the_formula(scale):
    rng = np.random.default_rng(1)
    x, g = (s * rng.standard_normal((2, 300, 4)).astype(np.float32) for s in (scale, 1.0))
    beta = np.array([0.25, 1.0, 3.0, 0.02], np.float32)
    y, pull_back = jax.vjp(snake_beta, *map(jnp.asarray, (x, ALPHA.astype(np.float32), beta)))
    dx, dalpha, dbeta = pull_back(jnp.asarray(g))
    u = (x * ALPHA.astype(np.float32)).astype(np.float64)
    inverse = 1 / (beta.astype(np.float64) + 1e-9)
    np.testing.assert_allclose(y, x + np.sin(u) ** 2 * inverse, rtol=2e-7, atol=3e-5)
    np.testing.assert_allclose(dx, g * (1 + ALPHA * np.sin(2 * u) * inverse), rtol=1e-5, atol=1e-3)
    by_alpha, by_beta = g * x * np.sin(2 * u) * inverse, -g * np.sin(u) ** 2 * inverse**2
    for actual, terms in ((dalpha, by_alpha), (dbeta, by_beta)):
        np.testing.assert_allclose(actual, terms.sum((0, 1)), rtol=1e-4, atol=1e-6 * np.abs(terms).sum((0, 1)).max())


def test_snake_beta_with_equal_parameters_is_snake():
    x = jax.random.normal(jax.random.key(0), (2, 30, 4), jnp.bfloat16)
    alpha = jnp.asarray(ALPHA, jnp.float32)
    y, pull_back = jax.vjp(snake_beta, x, alpha, alpha)
    expected, pull_back_snake = jax.vjp(snake, x, alpha)
    np.testing.assert_array_equal(y, expected)
    dx, dalpha, dbeta = pull_back(y)
    np.testing.assert_allclose(dalpha + dbeta, pull_back_snake(y)[1], rtol=1e-5)
    assert (y.dtype, dx.dtype, dbeta.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


def test_it_keeps_the_type_and_computes_in_float32():
    x = jnp.linspace(-3, 3, 64, dtype=jnp.bfloat16).reshape(1, 16, 4)
    alpha = jnp.asarray(ALPHA, jnp.float32)
    y, pull_back = jax.vjp(snake, x, alpha)
    np.testing.assert_array_equal(y, snake(x.astype(jnp.float32), alpha).astype(jnp.bfloat16))
    dx, dalpha = pull_back(y)
    assert (y.dtype, dx.dtype, dalpha.dtype) == (jnp.bfloat16, jnp.bfloat16, jnp.float32)


def test_beyond_float32s_phase_it_stays_within_its_range():
    x = jnp.asarray([[1e8, -3e9, 1e20, 1e37]], jnp.float32)
    y, pull_back = jax.vjp(snake, x, jnp.ones(4))
    np.testing.assert_allclose(y, x, atol=1)
    dx, dalpha = pull_back(jnp.ones_like(x))
    assert np.all((dx >= -1e-5) & (dx <= 2 + 1e-5))
    assert np.all(np.isfinite(dalpha))
