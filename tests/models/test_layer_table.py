"""The table of layers agrees with the parameters and with gradients."""

import jax
import numpy as np
import pytest
from conftest import KINDS, random_variables

from audiovae_jax import AudioVAE
from audiovae_jax.models.layer_table import layer_table
from audiovae_jax.models.layers import count_parameters

SMALL = {"base_channels": 3, "channel_mults": (1, 2), "strides": (2, 4), "latent_dim": 3}


@pytest.mark.parametrize("kind", [{}, *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS.values())])
def test_every_parameter_is_counted_once(kind):
    model = AudioVAE(**{**SMALL, **kind})
    for version in (model, model.clone(weight_norm=False)):
        shapes = version.shapes()["params"]
        rows = layer_table(version, shapes)
        assert sum(row.parameters for row in rows) == count_parameters(shapes)
    assert [row.stride for row in rows if "blocks" in row.name] == [2, 8, 2, 1]
    assert [row.width for row in rows if row.name.startswith("encoder/blocks")] == [3, 6]
    assert rows[-1].width == model.in_channels


@pytest.mark.slow
def test_receptive_fields_are_those_of_gradients():
    model = AudioVAE(**SMALL, **KINDS["oobleck"])
    variables, hop = random_variables(model), 8
    fields = {row.name: row.receptive_field for row in layer_table(model, variables["params"])}
    audio = jax.random.normal(jax.random.key(2), (1, 61 * hop, 2))

    def encoded(x):
        return model.apply(variables, x, deterministic=True, method="encode").mean[0, 30].sum()

    seen = np.flatnonzero(np.abs(jax.jit(jax.grad(encoded))(audio)[0]).sum(-1))
    assert seen[-1] - seen[0] + 1 == fields["encoder/final_conv"]

    def decoded(z):
        return model.apply(variables, z, method="decode")[0, 30 * hop].sum()

    seen = np.flatnonzero(
        np.abs(jax.jit(jax.grad(decoded))(jax.random.normal(jax.random.key(3), (1, 61, 3)))[0]).sum(-1)
    )
    assert (seen[-1] - seen[0] + 1) * hop == fields["decoder/final_conv"]
