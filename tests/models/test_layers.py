import jax
import jax.numpy as jnp
import numpy as np

from audiovae_jax.models import layers


def test_weight_norm_ignores_the_scale_of_v_and_starts_as_v():
    layer = layers.WNConv1d(3, kernel_size=5, padding=2)
    x = jax.random.normal(jax.random.key(1), (1, 20, 2))
    params = layer.init(jax.random.key(0), x)["params"]
    np.testing.assert_allclose(layers.fold_weight_norm(params["g"], params["v"], -1), params["v"], rtol=1e-6)
    scaled = {**params, "v": params["v"] * 7}
    np.testing.assert_allclose(layer.apply({"params": scaled}, x), layer.apply({"params": params}, x), atol=1e-5)


def test_a_transposed_convolution_has_one_g_per_input_channel():
    layer = layers.WNConvTranspose1d(3, stride=2, padding=1)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 5, 4)))["params"]
    assert params["v"].shape == (4, 4, 3)
    assert params["g"].shape == (4,)
    norms = np.sqrt((np.asarray(params["v"]) ** 2).sum((0, 2)))
    np.testing.assert_allclose(params["g"], norms, rtol=1e-6)


def test_folded_kernels_give_the_same_output():
    x = jax.random.normal(jax.random.key(1), (1, 20, 2))
    layer = layers.WNConv1d(3, kernel_size=4, stride=2, padding=1)
    params = layer.init(jax.random.key(0), x)["params"]
    params = {**params, "g": params["g"] * jnp.array([0.5, 1.0, 2.0])}
    folded = {"kernel": layers.fold_weight_norm(params["g"], params["v"], -1), "bias": params["bias"]}
    plain = layer.clone(weight_norm=False)
    np.testing.assert_allclose(plain.apply({"params": folded}, x), layer.apply({"params": params}, x), atol=1e-6)


def test_snake_beta_stores_logarithms_which_start_at_0():
    layer = layers.SnakeBeta()
    x = jax.random.normal(jax.random.key(1), (1, 20, 2))
    params = layer.init(jax.random.key(0), x)["params"]
    assert {name: (leaf == 0).all() for name, leaf in params.items()} == {"alpha": True, "beta": True}
    np.testing.assert_allclose(layer.apply({"params": params}, x), x + jnp.sin(x) ** 2, atol=1e-6)
    params = {"alpha": jnp.log(jnp.array([2.0, 3.0])), "beta": jnp.log(jnp.array([0.5, 4.0]))}
    expected = x + jnp.sin(jnp.array([2.0, 3.0]) * x) ** 2 / jnp.array([0.5, 4.0])
    np.testing.assert_allclose(layer.apply({"params": params}, x), expected, atol=1e-5)


def test_a_layer_without_bias_has_no_parameter_for_it():
    layer = layers.WNConv1d(3, kernel_size=5, padding=2, use_bias=False)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 20, 2)))["params"]
    assert set(params) == {"g", "v"}
    assert (layer.apply({"params": params}, jnp.zeros((1, 20, 2))) == 0).all()


def test_bfloat16_computes_low_and_keeps_parameters_high():
    layer = layers.WNConv2d(3, kernel_size=(3, 3), padding=(1, 1), dtype=jnp.bfloat16)
    x = jnp.ones((1, 4, 4, 2))
    params = layer.init(jax.random.key(0), x)
    assert layer.apply(params, x).dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
