"""Each layer block by block against the whole signal at once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import KINDS, SMALL_MODEL, random_variables
from jax import lax

from audiovae_jax import AudioVAE
from audiovae_jax.models import layer_list
from audiovae_jax.models.layer_list import Activation, Block, Conv, Residual

LENGTH = 48
CONV = {
    "same": Conv(("conv",), 7, padding=(3, 3)),
    "causal and dilated": Conv(("conv",), 7, dilation=3, padding=(18, 0)),
    "strided": Conv(("conv",), 6, stride=3, padding=(2, 2)),
    "causal and strided": Conv(("conv",), 8, stride=4, padding=(4, 0)),
    "transposed": Conv(("conv",), 6, stride=3, padding=(1, 1), is_transposed=True),
    "causal and transposed": Conv(("conv",), 6, stride=3, padding=(0, 3), is_transposed=True),
}


def _in_blocks(layers, params, x, size):
    """Return the outputs of all positions of the signal, and their first input blocks of `size` at a time."""
    states, results, length = (), [], x.shape[1]
    first, count = layer_list.first_output(layers), layer_list.blocks_until_steady(layers, size)
    x = jnp.pad(x, ((0, 0), (0, (count + 1) * size), (0, 0)))
    for index in range(x.shape[1] // size):
        block = Block(x[:, index * size : (index + 1) * size], 0, jnp.int32(index), jnp.int32(length))
        states, block = layer_list.run(layers, params, states, block, jnp.float32)
        assert block.first == first
        results.append(block.x)
    return jnp.concatenate(results, axis=1)[:, -first:]


@pytest.mark.parametrize("name", CONV)
@pytest.mark.parametrize("size", [12, 24])
def test_convolutions_are_those_of_xla(name, size):
    conv, rng = CONV[name], np.random.default_rng(0)
    x, kernel = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, LENGTH, 3), (conv.kernel_size, 3, 5)))
    bias = rng.standard_normal(5).astype(np.float32)
    if conv.is_transposed:
        padding = [conv.kernel_size - 1 - omitted for omitted in conv.padding]
        kernel_of_xla, strides, dilation = kernel[::-1], {"lhs_dilation": (conv.stride,)}, (1,)
    else:
        padding, kernel_of_xla, strides = conv.padding, kernel, {"rhs_dilation": (conv.dilation,)}
        dilation = (conv.stride,)
    expected = bias + lax.conv_general_dilated(
        x, kernel_of_xla, dilation, [tuple(padding)], dimension_numbers=("NWC", "WIO", "NWC"), **strides
    )
    actual = _in_blocks((conv,), {"conv": {"kernel": kernel, "bias": bias}}, x, size)
    assert expected.shape[1] == conv.length(LENGTH)
    np.testing.assert_allclose(actual[:, : expected.shape[1]], expected, atol=1e-5)
    assert not actual[:, expected.shape[1] :].any()


def test_a_residual_unit_adds_its_delayed_input():
    layers = (Residual((Conv(("conv",), 7, padding=(3, 3)), Activation(("snake",), "elu"))),)
    x = np.random.default_rng(0).standard_normal((1, LENGTH, 2)).astype(np.float32)
    kernel = np.zeros((7, 2, 2), np.float32)
    kernel[6] = np.eye(2)  # the input three samples later
    later = np.pad(x, ((0, 0), (0, 3), (0, 0)))[:, 3:]
    actual = _in_blocks(layers, {"conv": {"kernel": kernel}}, x, 12)[:, :LENGTH]
    np.testing.assert_allclose(actual, x + jax.nn.elu(later), atol=1e-6)


@pytest.mark.parametrize("kind", ["default", *KINDS])
def test_the_lists_name_every_parameter_once(kind):
    model = AudioVAE(**{**SMALL_MODEL, **KINDS.get(kind, {})})
    _, variables = model.folded(random_variables(model))

    def paths(layers):
        for layer in layers:
            yield from paths(layer.layers) if isinstance(layer, Residual) else [layer.path]

    for network, layers in (
        ("encoder", layer_list.encoder_layers(model)), ("decoder", layer_list.decoder_layers(model)),
    ):  # fmt: skip
        named = {path: [] for path in paths(layers)}
        for path, _ in jax.tree_util.tree_leaves_with_path(variables["params"][network]):
            named[tuple(key.key for key in path)[:-1]].append(path)
        assert len(named) == len(list(paths(layers)))
        assert all(named.values()) or model.activation == "elu"
