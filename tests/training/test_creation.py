"""The initial state, drawn array by array."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from small_step import SHAPE, assert_trees_close, assert_trees_equal, initial_state, make_recipe

from audiovae_jax.discriminators.stack import Judge
from audiovae_jax.training import creation, mesh


@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_it_is_what_one_program_draws(seed):
    recipe, devices = make_recipe(seed=seed), mesh.make_mesh(jax.devices()[:2])
    drawn = creation.create_state(recipe, devices, SHAPE)
    assert {x.sharding for x in jax.tree.leaves(drawn)} == {mesh.replicated(devices)}
    expected = initial_state(recipe, devices)
    assert jax.tree.structure(drawn) == jax.tree.structure(expected)
    assert_trees_close(jax.device_get(drawn), jax.device_get(expected), rtol=1e-6)
    again = creation.create_state(recipe, devices, SHAPE)
    assert_trees_equal(drawn, again)


class _Own(Judge):
    """With initialisers of its own, and a parameter that depends on the audio it is first given."""

    @nn.compact
    def judge(self, audio, known=None):
        x = nn.Dense(4, kernel_init=nn.initializers.orthogonal())(audio)
        peak = self.param("peak", lambda _: 1.0 + jnp.max(jnp.abs(audio)))
        return [x * peak], [[x]]


def test_any_module_is_created():
    recipe = make_recipe()
    # Layers that are computed again for the gradient have their parameters within.
    remat = dataclasses.replace(recipe, model=recipe.model.clone(remat=True))
    for changed in (remat, dataclasses.replace(recipe, discriminator=_Own())):
        devices = mesh.make_mesh(jax.devices()[:1])
        drawn = creation.create_state(changed, devices, SHAPE)
        assert_trees_close(jax.device_get(drawn), jax.device_get(initial_state(changed, devices)), rtol=1e-5)


def test_nothing_is_computed_from_the_audio(monkeypatch):
    evaluated = []
    as_function = creation.core.jaxpr_as_fun
    monkeypatch.setattr(creation.core, "jaxpr_as_fun", lambda jaxpr: evaluated.append(str(jaxpr)) or as_function(jaxpr))
    recipe = make_recipe()
    for model in (recipe.model, recipe.model.clone(remat=True)):
        changed = dataclasses.replace(recipe, model=model)
        creation.create_state(changed, mesh.make_mesh(jax.devices()[:1]), SHAPE)
    assert len(evaluated) == 2
    for text in evaluated:
        assert "random_bits" in text
        for computed in ("conv_general_dilated", "dot_general", "sin", "fft"):
            assert not re.search(rf"\b{computed}\b", text), computed
