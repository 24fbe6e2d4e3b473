import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core
from small_step import SHAPE, assert_trees_close, assert_trees_equal, make_recipe

from audiovae_jax.config import build
from audiovae_jax.discriminators.base import Discriminator
from audiovae_jax.distributed import mesh
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.training.optimizer import FROZEN_ENCODER
from audiovae_jax.training.state import create_state, create_train_state, trainable_params


def _one_program(recipe, devices):
    return jax.jit(lambda: create_train_state(recipe, SHAPE), out_shardings=mesh.replicated(devices))()


def test_a_state_contains_both_networks_and_their_optimizers(micro_config):
    recipe = build.build_recipe(micro_config)
    state = jax.eval_shape(functools.partial(create_train_state, recipe, build.example_shape(micro_config)))
    assert set(state.variables) == {"params", "latent_statistics"}
    assert state.step.shape == ()
    for params, opt_state in (
        (state.params, state.opt_state),
        (state.discriminator_params, state.discriminator_opt_state),
    ):
        # Two moments per parameter, and a count.
        assert count_parameters(opt_state) == 2 * count_parameters(params) + 1


def test_a_frozen_encoder_has_no_optimizer_state(micro_config):
    micro_config.model.encoder_frozen = True
    micro_config.use_adversarial = False
    recipe = build.build_recipe(micro_config)
    state = jax.eval_shape(functools.partial(create_train_state, recipe, build.example_shape(micro_config)))
    trainable = trainable_params(state.params, FROZEN_ENCODER)
    assert set(trainable) == {"decoder"}
    assert count_parameters(state.opt_state) == 2 * count_parameters(trainable) + 1
    assert state.discriminator_params is None
    assert state.discriminator_opt_state is None
    assert trainable_params(state.params, ()) == state.params


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 7, 2**31, 2**32 - 1])
def test_it_is_what_one_program_draws(seed):
    recipe, devices = make_recipe(seed=seed), mesh.make_mesh(jax.devices()[:2])
    drawn = create_state(recipe, devices, SHAPE)
    assert {x.sharding for x in jax.tree.leaves(drawn)} == {mesh.replicated(devices)}
    expected = _one_program(recipe, devices)
    assert jax.tree.structure(drawn) == jax.tree.structure(expected)
    assert_trees_close(jax.device_get(drawn), jax.device_get(expected), rtol=1e-6)
    again = create_state(recipe, devices, SHAPE)
    assert_trees_equal(drawn, again)


@pytest.mark.slow
def test_another_seed_recompiles_nothing():
    compiled = []

    def listen(name, *_, **__):
        if "backend_compile" in name:
            compiled.append(name)

    devices = mesh.make_mesh(jax.devices()[:1])
    jax.clear_caches()
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        create_state(make_recipe(seed=0), devices, SHAPE)
        first = len(compiled)
        create_state(make_recipe(seed=2**32 - 1), devices, SHAPE)
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert len(compiled) == first > 0


_TABLE = jnp.arange(1.0, 3.0)


class _Own(Discriminator):
    """Has custom initialisers: from the first audio, from numbers, and from shared arrays."""

    @nn.compact
    def discriminate(self, audio, known_maps=None):
        x = nn.Dense(4, kernel_init=nn.initializers.orthogonal())(audio * self.param("table", lambda _: _TABLE))
        peak = self.param("peak", lambda _: 1.0 + jnp.max(jnp.abs(audio)))
        scale = self.param("scale", lambda _: jnp.asarray(1.5))
        again = self.param("again", lambda _: scale)
        same = self.param("same", lambda _: _TABLE)
        return [x * peak * scale * again * jnp.sum(same)], [[x]]


@pytest.mark.slow
def test_any_module_is_created():
    recipe = make_recipe()
    # Layers that are recomputed for the gradient contain their parameters.
    remat = dataclasses.replace(recipe, model=recipe.model.clone(remat=True))
    for changed in (remat, dataclasses.replace(recipe, discriminator=_Own())):
        devices = mesh.make_mesh(jax.devices()[:1])
        drawn, expected = create_state(changed, devices, SHAPE), _one_program(changed, devices)
        assert [x.dtype for x in jax.tree.leaves(drawn)] == [x.dtype for x in jax.tree.leaves(expected)]
        assert_trees_close(jax.device_get(drawn), jax.device_get(expected), rtol=1e-5)


def test_the_first_step_may_reuse_all_of_its_memory():
    recipe = dataclasses.replace(make_recipe(), discriminator=_Own())
    state = create_state(recipe, mesh.make_mesh(jax.devices()[:1]), SHAPE)
    jax.jit(lambda state: jax.tree.map(lambda x: x + x, state), donate_argnums=0)(state)
    np.testing.assert_array_equal(_TABLE, [1.0, 2.0])


@pytest.mark.slow
def test_without_what_jax_does_not_promise_it_is_one_program(monkeypatch):
    recipe, devices = make_recipe(), mesh.make_mesh(jax.devices()[:1])
    drawn = create_state(recipe, devices, SHAPE)
    monkeypatch.setattr("audiovae_jax.training.state.dce_jaxpr", None)
    assert_trees_close(jax.device_get(create_state(recipe, devices, SHAPE)), jax.device_get(drawn), rtol=1e-6)


def test_nothing_is_computed_from_the_audio(monkeypatch):
    evaluated = []
    as_function = core.jaxpr_as_fun
    monkeypatch.setattr(core, "jaxpr_as_fun", lambda jaxpr: evaluated.append(str(jaxpr)) or as_function(jaxpr))
    recipe = make_recipe()
    for model in (recipe.model, recipe.model.clone(remat=True)):
        changed = dataclasses.replace(recipe, model=model)
        create_state(changed, mesh.make_mesh(jax.devices()[:1]), SHAPE)
    assert len(evaluated) == 2
    for text in evaluated:
        assert "random_bits" in text
        for computed in ("conv_general_dilated", "dot_general", "sin", "fft"):
            assert not re.search(rf"\b{computed}\b", text), computed
