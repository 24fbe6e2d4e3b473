import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax.ops.column_sum import add_bias, column_sum


def test_it_sums_all_axes_but_the_last_in_float32():
    x = np.random.default_rng(0).standard_normal((3, 5, 7, 4)).astype(np.float32)
    np.testing.assert_allclose(column_sum(x), x.sum((0, 1, 2)), rtol=1e-5, atol=1e-5)
    ones = jnp.ones((2, 4096, 3), jnp.bfloat16)  # in bfloat16 a sum of ones ends at 256
    assert column_sum(ones).dtype == jnp.float32
    np.testing.assert_array_equal(column_sum(ones), np.full(3, 8192.0))


def test_the_bias_has_the_gradient_of_a_plain_sum():
    rng = np.random.default_rng(1)
    x, g = (jnp.asarray(rng.standard_normal((2, 6, 4)), jnp.float32) for _ in range(2))
    bias = jnp.arange(4.0)
    y, pull_back = jax.vjp(add_bias, x, bias)
    np.testing.assert_array_equal(y, x + bias)
    dx, dbias = pull_back(g)
    np.testing.assert_array_equal(dx, g)
    np.testing.assert_allclose(dbias, g.sum((0, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [1, 2, 4])
def test_opposite_halves_cancel_exactly(features):
    half = np.random.default_rng(2).standard_normal((3, 511, features)).astype(np.float32)
    both = jnp.concatenate([half, -half])
    nothing = np.zeros(features, np.float32)
    np.testing.assert_array_equal(column_sum(both), nothing)
    _, pull_back = jax.vjp(add_bias, both, nothing)
    np.testing.assert_array_equal(pull_back(both)[1], nothing)
