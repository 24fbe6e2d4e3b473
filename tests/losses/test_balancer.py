import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax.losses.balancer import balanced_gradient


def test_shares_of_the_norm_are_those_of_the_weights_at_any_scale():
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((3, 8, 2)), jnp.float32) for _ in range(2))

    def norm(x):
        return np.mean(np.sqrt(np.sum(np.square(x), axis=(1, 2))))

    weights = {"a": 3.0, "b": 1.0, "off": 0}
    expected = 2.0 * (0.75 * a / norm(a) + 0.25 * b / norm(b))
    for scale in (1.0, 1e4):
        found = balanced_gradient({"a": a, "b": scale * b, "off": a}, weights, 2.0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert norm(balanced_gradient({"a": a, "b": 7 * a}, {"a": 1.0, "b": 2.0}, 0.5)) == pytest.approx(0.5, rel=1e-5)
    assert np.isfinite(balanced_gradient({"a": jnp.zeros_like(a)}, {"a": 1.0}, 1.0)).all()
    split = jax.vmap(lambda x: balanced_gradient({"a": x[None]}, {"a": 1.0}, 1.0, "rows"), axis_name="rows")(a)
    np.testing.assert_allclose(split[:, 0], balanced_gradient({"a": a}, {"a": 1.0}, 1.0), rtol=1e-5)
