import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax.ops import bilinear, convolution


@pytest.mark.parametrize(("taps", "outputs"), [(9, 24), (9, 17), (9, 1), (3, 2), (7, 24), (5, 8)])
def test_the_transforms_make_a_correlation_of_fewer_products(taps, outputs):
    a, b, c = bilinear.transforms(taps, outputs)
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal(outputs + taps - 1), rng.standard_normal(taps)
    np.testing.assert_allclose(c @ ((a @ x) * (b @ w)), np.correlate(x, w), atol=1e-5)
    assert len(a) == len(b) == c.shape[1] < 1.5 * (taps + outputs)


def test_wide_float32_convolutions_are_computed_so_on_a_cpu_and_others_are_not():
    def flops(dtype, channels):
        x = jax.ShapeDtypeStruct((1, 9, 257, channels), dtype)
        kernel = jax.ShapeDtypeStruct((3, 9, channels, channels), dtype)
        options = {"stride": (2, 1), "dilation": (1, 2), "padding": (1, 8)}
        compiled = jax.jit(lambda x, k: convolution.conv2d(x, k, **options)).lower(x, kernel).compile()
        return compiled.cost_analysis()["flops"] / (2 * 5 * 257 * 27 * channels**2)

    assert flops(jnp.float32, 64) < 0.5
    assert flops(jnp.bfloat16, 64) > 0.9
    assert flops(jnp.float32, 2) > 0.9
