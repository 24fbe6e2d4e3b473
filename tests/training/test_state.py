import functools

import jax

from audiovae_jax.config import build
from audiovae_jax.training.state import count_parameters, create_train_state, split_trainable


def test_a_state_holds_both_networks_and_their_optimizers(micro_config):
    recipe = build.build_recipe(micro_config)
    state = jax.eval_shape(functools.partial(create_train_state, recipe, build.example_shape(micro_config)))
    assert set(state.variables) == {"params", "latent_statistics"}
    assert state.step.shape == ()
    for params, opt_state in (
        (state.params, state.opt_state),
        (state.discriminator_params, state.discriminator_opt_state),
    ):
        # Two moments a parameter, and a count.
        assert count_parameters(opt_state) == 2 * count_parameters(params) + 1


def test_a_frozen_encoder_has_no_optimizer_state(micro_config):
    micro_config.model.encoder_frozen = True
    micro_config.use_adversarial = False
    recipe = build.build_recipe(micro_config)
    state = jax.eval_shape(functools.partial(create_train_state, recipe, build.example_shape(micro_config)))
    trainable, frozen = split_trainable(state.params, encoder_frozen=True)
    assert set(frozen) == {"encoder"}
    assert count_parameters(state.opt_state) == 2 * count_parameters(trainable) + 1
    assert state.discriminator_params is None
    assert state.discriminator_opt_state is None
    assert split_trainable(state.params, encoder_frozen=False) == (state.params, {})
