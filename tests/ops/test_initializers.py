import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax.ops import initializers


@pytest.mark.parametrize("shape", [(1,), (7,), (8,), (3, 9, 5, 4), (2, 33)])
def test_draws_equal_those_of_jax(shape):
    expected = jax.random.uniform(jax.random.key(3), shape, jnp.float32, -0.1, 0.1)
    np.testing.assert_array_equal(initializers.uniform(jax.random.key(3), shape, 0.1), expected)
