import jax
import jax.numpy as jnp
import pytest

from audiovae_jax import losses


def test_every_weight_scales_its_loss_and_its_gradient():
    x, y = jnp.ones((1, 8, 1)), jnp.zeros((1, 8, 1))

    def total(p, weight):
        terms = (("a", weight, losses.waveform_l1), ("b", 1.0, lambda *, prediction, target: jnp.sum(prediction)))
        return losses.WeightedLosses(terms)(prediction=p, target=y)

    (one, values), gradient = jax.value_and_grad(total, has_aux=True)(x, 1.0)
    (three, _), triple = jax.value_and_grad(total, has_aux=True)(x, 3.0)
    assert values == {"a": 1.0, "b": 8.0}
    assert float(three - one) == pytest.approx(2.0)
    assert float((triple - gradient).sum()) == pytest.approx(2.0)


def test_losses_see_float32():
    seen = []

    def spy(*, prediction, target):
        seen.append((prediction.dtype, target.dtype))
        return jnp.float32(0)

    x = jnp.ones((1, 8, 1), jnp.bfloat16)
    losses.WeightedLosses((("spy", 1.0, spy),))(prediction=x, target=x)
    assert seen == [(jnp.float32, jnp.float32)]
