"""The step: which network is updated when, and equal results on any number of devices."""

import dataclasses
import functools

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import KINDS
from small_step import (
    SHAPE,
    SmallDiscriminator,
    assert_trees_close,
    assert_trees_equal,
    batch,
    changed,
    initial_state,
    make_recipe,
    run,
)

from audiovae_jax import AdversarialLossCalculator, AudioVAE, losses
from audiovae_jax.distributed import mesh
from audiovae_jax.losses import WeightedLosses
from audiovae_jax.losses.kl import KLTerm
from audiovae_jax.training import step


@pytest.mark.slow
def test_four_devices_give_the_numbers_of_one():
    one, one_history = run(make_recipe(), steps=3)
    four, four_history = run(make_recipe(), steps=3, devices=4)
    assert all(m["g_grad_norm"] > 1.0 for m in one_history)  # the clip is active
    for a, b in zip(four_history, one_history, strict=True):
        assert_trees_close(a, b, rtol=1e-5)
    assert_trees_close(four.params, one.params, rtol=1e-5)
    assert_trees_close(four.discriminator_params, one.discriminator_params, rtol=1e-5)
    assert changed(four.params, jax.device_get(initial_state(make_recipe())).params)


@pytest.mark.slow
def test_pmap_of_the_same_function_agrees():
    recipe = make_recipe()
    expected, history = run(recipe, devices=4)
    per_device = functools.partial(step.train_step, recipe=recipe, adversarial=True)
    stacked = jax.tree.map(lambda x: np.stack([x] * 4), jax.device_get(initial_state(recipe)))
    state, metrics = jax.pmap(per_device, axis_name=mesh.AXIS)(stacked, batch().reshape(4, 1, *SHAPE[1:]))
    for device in range(4):
        assert_trees_close(jax.tree.map(lambda x, d=device: x[d], jax.device_get(state)), expected, rtol=1e-5)
    assert_trees_close(jax.tree.map(lambda x: x[0], jax.device_get(metrics)), history[0], rtol=1e-5)


@pytest.mark.slow
def test_the_updates_are_those_of_separate_backward_passes():
    # The one shared forward pass against the textbook form: two losses, two gradients.
    recipe = make_recipe()
    state, _ = run(recipe)
    initial = jax.device_get(initial_state(recipe))
    audio = jnp.asarray(batch())
    noise = jax.vmap(
        lambda row: jax.random.normal(
            jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 1), 0), row), (32, 4)
        )
    )(jnp.arange(4))

    def generate(params):
        return recipe.model.apply({**initial.variables, "params": params}, audio, noise=noise)

    def generator_loss(params):
        output = generate(params)
        judge = functools.partial(recipe.discriminator.apply, {"params": initial.discriminator_params})
        adversarial = recipe.adversarial.compute_generator_loss(judge, audio, output.reconstruction, 0)
        reconstruction, _ = recipe.losses(prediction=output.reconstruction, target=audio)
        return reconstruction + adversarial["total_adv_loss"]  # the KL weight is 0 at step 0

    def discriminator_loss(params):
        judge = functools.partial(recipe.discriminator.apply, {"params": params})
        fake = generate(initial.params).reconstruction
        return recipe.adversarial.compute_discriminator_loss(judge, audio, fake)["d_loss"]

    for optimizer, loss, params, opt_state, result in (
        (recipe.optimizer, generator_loss, initial.params, initial.opt_state, state.params),
        (
            recipe.discriminator_optimizer,
            discriminator_loss,
            initial.discriminator_params,
            initial.discriminator_opt_state,
            state.discriminator_params,
        ),
    ):

        @jax.jit
        def update(params, optimizer=optimizer, loss=loss, opt_state=opt_state):
            updates, _ = optimizer.update(jax.grad(loss)(params), opt_state, params, step=0)
            return optax.apply_updates(params, updates)

        assert_trees_close(result, jax.device_get(update(params)), rtol=1e-4)


def test_the_discriminator_is_bit_unchanged_and_absent_from_the_metrics_during_warm_up():
    recipe = make_recipe()
    initial = jax.device_get(initial_state(recipe))
    state, history = run(recipe, steps=2, adversarial=False)
    assert_trees_equal(state.discriminator_params, initial.discriminator_params)
    assert_trees_equal(state.discriminator_opt_state, initial.discriminator_opt_state)
    assert changed(state.params, initial.params)
    assert "d_loss" not in history[0]
    assert state.step == 2


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_update_intervals_are_honoured(steps):
    # Step 0 is divisible by both; step 1 by neither.
    both, _ = run(make_recipe(), steps=1)
    recipe = make_recipe(generator_update_every=2, discriminator_update_every=2)
    state, history = run(recipe, steps=steps)
    assert_trees_close(state.params, both.params, rtol=1e-6)
    assert_trees_close(state.discriminator_params, both.discriminator_params, rtol=1e-6)
    assert state.step == steps
    if steps == 2:
        assert history[1]["g_grad_norm"] == history[1]["d_grad_norm"] == 0
    alone, _ = run(make_recipe(discriminator_update_every=2), steps=2)
    assert_trees_close(alone.discriminator_params, both.discriminator_params, rtol=1e-6)
    assert changed(alone.params, both.params)


@pytest.mark.slow
def test_feature_matching_reaches_the_generator():
    def norm(weight):
        calculator = AdversarialLossCalculator(adversarial_weight=0.0, feature_matching_weight=weight)
        recipe = make_recipe(adversarial=calculator, losses=WeightedLosses((("none", 0.0, losses.waveform_l1),)))
        return run(recipe)[1][0]["g_grad_norm"]

    one = norm(10.0)
    assert norm(0.0) == 0.0
    assert one > 1e-3
    assert norm(20.0) == pytest.approx(2 * one, rel=1e-3)


@pytest.mark.slow
def test_a_frozen_encoder_has_no_optimizer_state_and_does_not_move():
    recipe = make_recipe()
    recipe = dataclasses.replace(recipe, model=recipe.model.clone(encoder_frozen=True))
    initial = jax.device_get(initial_state(recipe))
    state, _ = run(recipe, steps=2)
    assert_trees_equal(state.params["encoder"], initial.params["encoder"])
    assert changed(state.params["decoder"], initial.params["decoder"])
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert any("decoder" in path for path in paths)
    assert not any("encoder" in path for path in paths)


@pytest.mark.slow
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_every_kind_is_trained(kind):
    size = {"base_channels": 4, "channel_mults": (1, 2), "strides": (2, 4), "latent_dim": 4, "dilations": (1,)}
    model = AudioVAE(**size, **{**KINDS[kind], "in_channels": 2})
    weight = 0.0 if model.posterior == "none" else 1e-3
    recipe = make_recipe(model=model, kl=KLTerm(weight=weight, warmup_steps=0, reduction="frame"))
    state, history = run(recipe, steps=2)
    before = jax.device_get(initial_state(recipe)).params
    for path, (old, new) in flax.traverse_util.flatten_dict(jax.tree.map(lambda *x: x, before, state.params)).items():
        assert (old != new).any(), path
    assert not any(metrics["g_skipped"] for metrics in history)
    if model.posterior == "none":
        assert not any({"kl_loss", "kl_weight"} & metrics.keys() for metrics in history)
    else:
        assert all(np.isfinite(metrics["kl_loss"]) and metrics["kl_weight"] == weight for metrics in history)


@pytest.mark.slow
def test_noise_depends_only_on_seed_step_and_row():
    model = make_recipe().model

    def noise(recipe, at, devices):
        devices = mesh.make_mesh(jax.devices()[:devices])
        fn = jax.shard_map(
            lambda audio: step.latent_noise(recipe, at, audio),
            mesh=devices,
            in_specs=jax.P(mesh.AXIS),
            out_specs=jax.P(mesh.AXIS),
        )
        return np.asarray(fn(mesh.place_batch(devices, batch())))

    recipe = make_recipe(model=model)
    one = noise(recipe, 5, 1)
    np.testing.assert_array_equal(one, noise(recipe, 5, 4))
    assert np.abs(one - noise(recipe, 6, 1)).max() > 0.1
    assert np.abs(one - noise(make_recipe(seed=1), 5, 1)).max() > 0.1
    assert np.abs(one[0] - one[1]).max() > 0.1


@pytest.mark.slow
def test_validation_is_the_training_objective_with_the_final_kl_weight():
    recipe = make_recipe()
    devices = mesh.make_mesh(jax.devices()[:2])
    state = initial_state(recipe, devices)
    validate = mesh.map_devices(
        functools.partial(step.validation_step, recipe=recipe), devices, (jax.P(), jax.P(mesh.AXIS))
    )
    metrics, reconstruction = jax.device_get(validate(state.variables, mesh.place_batch(devices, batch())))
    _, (first,) = run(recipe, adversarial=False)
    assert metrics["l1"] == pytest.approx(first["l1"], rel=1e-5)
    assert metrics["total_loss"] == pytest.approx(100 * metrics["l1"] + 1e-3 * metrics["kl_loss"], rel=1e-5)
    apply = jax.jit(functools.partial(recipe.model.apply, deterministic=True))
    expected = apply(jax.device_get(state.variables), batch()).reconstruction
    np.testing.assert_allclose(reconstruction, expected, atol=1e-5)


@pytest.mark.slow
def test_a_users_loss_may_loop():
    def looping(*, prediction, target):
        def body(total, x):
            return total + jnp.mean(jnp.abs(x)), None

        return jax.lax.scan(body, jnp.zeros(()), jnp.moveaxis(prediction - target, 1, 0))[0]

    recipe = make_recipe(losses=WeightedLosses((("loop", 1.0, looping),)))
    assert_trees_close(run(recipe, devices=2)[0].params, run(recipe)[0].params, rtol=1e-5)


def _after_a_step(recipe, audio, devices=4, adversarial=True):
    """Return `(state before, state after, metrics)` of a step on `audio`."""
    devices = mesh.make_mesh(jax.devices()[:devices])
    per_device = functools.partial(step.train_step, recipe=recipe, adversarial=adversarial)
    state = initial_state(recipe, devices)
    before = jax.device_get(state)
    after, metrics = mesh.map_devices(per_device, devices, (jax.P(), jax.P()), donate_argnums=0)(
        state, mesh.place_batch(devices, audio)
    )
    return before, jax.device_get(after), jax.device_get(metrics)


def _parts(state):
    """Return the parts that the generator's update changes, and those of the discriminator's."""
    return (state.params, state.opt_state), (state.discriminator_params, state.discriminator_opt_state)


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_one_bad_row_skips_both_updates_on_every_device(value):
    audio = batch()
    audio[2, 100, 0] = value
    before, after, metrics = _after_a_step(make_recipe(), audio)
    assert_trees_equal(after.replace(step=before.step), before)
    assert after.step == 1
    assert metrics["g_skipped"]
    assert metrics["d_skipped"]
    assert not np.isfinite(metrics["total_g_loss"])


@pytest.mark.slow
def test_a_complete_step_reports_no_skipped_update():
    _, history = run(make_recipe())
    assert not history[0]["g_skipped"]
    assert not history[0]["d_skipped"]


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_skips_only_the_generator():
    def root(*, prediction, target):  # 0 as a value
        return jnp.sqrt(jnp.sum(jnp.abs(prediction - prediction)))

    before, after, metrics = _after_a_step(make_recipe(losses=WeightedLosses((("root", 1.0, root),))), batch())
    assert np.isfinite(metrics["total_g_loss"])
    assert (metrics["g_skipped"], metrics["d_skipped"]) == (True, False)
    assert_trees_equal(_parts(after)[0], _parts(before)[0])
    assert changed(after.discriminator_params, before.discriminator_params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))


@pytest.mark.slow
def test_a_loss_that_overflows_bfloat16_is_skipped_though_its_gradient_is_not():
    def overflowing(*, prediction, target):
        return jnp.float32(jnp.bfloat16(3e38) * jnp.bfloat16(2)) + jnp.mean(prediction)

    before, after, metrics = _after_a_step(make_recipe(losses=WeightedLosses((("big", 1.0, overflowing),))), batch())
    assert np.isfinite(metrics["g_grad_norm"])
    assert (metrics["g_skipped"], metrics["d_skipped"]) == (True, False)
    assert_trees_equal(_parts(after)[0], _parts(before)[0])


class _RootedDiscriminator(nn.Module):
    """A discriminator whose parameter `root` has no finite gradient at 0."""

    @nn.compact
    def __call__(self, audio):
        x = nn.leaky_relu(nn.Conv(4, (7,), strides=3)(audio))
        root = jnp.sqrt(self.param("root", nn.initializers.zeros, ()))
        return [nn.Conv(1, (3,))(x) + root], [[x]]


@pytest.mark.slow
def test_a_discriminators_gradient_that_is_not_finite_skips_only_its_update():
    before, after, metrics = _after_a_step(make_recipe(discriminator=_RootedDiscriminator()), batch())
    assert np.isfinite(metrics["d_loss"])
    assert (metrics["g_skipped"], metrics["d_skipped"]) == (False, True)
    assert_trees_equal(_parts(after)[1], _parts(before)[1])
    assert changed(after.params, before.params)


class _ForgivingDiscriminator(SmallDiscriminator):
    """Replaces values that are not finite, so that its own loss is finite."""

    @nn.compact
    def __call__(self, audio):
        return super().__call__(jnp.nan_to_num(audio, posinf=1.0))


@pytest.mark.slow
def test_a_discriminator_does_not_learn_from_audio_that_is_not_finite():
    audio = batch()
    audio[0, 0, 0] = np.nan
    before, after, metrics = _after_a_step(make_recipe(discriminator=_ForgivingDiscriminator()), audio)
    assert np.isfinite(metrics["d_loss"])
    assert np.isfinite(metrics["d_grad_norm"])
    assert metrics["d_skipped"]
    assert_trees_equal(after.replace(step=before.step), before)


@pytest.mark.slow
def test_an_update_that_is_not_due_is_not_skipped():
    audio = batch()
    audio[0, 0, 0] = np.nan
    recipe = make_recipe(generator_update_every=2)
    devices = mesh.make_mesh(jax.devices()[:1])
    train_step = mesh.map_devices(
        functools.partial(step.train_step, recipe=recipe, adversarial=True),
        devices,
        (jax.P(), jax.P()),
        donate_argnums=0,
    )
    state, _ = train_step(initial_state(recipe, devices), mesh.place_batch(devices, batch()))
    before = jax.device_get(state)
    after, metrics = train_step(state, mesh.place_batch(devices, audio))
    assert (bool(metrics["g_skipped"]), bool(metrics["d_skipped"])) == (False, True)
    assert_trees_equal(jax.device_get(after).replace(step=before.step), before)


@pytest.mark.slow
@pytest.mark.parametrize("adversarial", [False, True])
def test_skipping_needs_no_collective_of_its_own(adversarial):
    recipe, devices = make_recipe(), mesh.make_mesh()
    state = initial_state(recipe, devices)
    train_step = mesh.map_devices(
        functools.partial(step.train_step, recipe=recipe, adversarial=adversarial),
        devices,
        (jax.P(), jax.P()),
        donate_argnums=0,
    )
    compiled = train_step.lower(state, mesh.place_batch(devices, batch())).compile().as_text()
    collectives = [line for line in compiled.splitlines() if " all-reduce(" in line or " all-reduce-start(" in line]
    assert 1 <= len(collectives) <= 1 + adversarial  # one per update at most
    assert not any(f" {name}" in compiled for name in ("all-gather(", "all-to-all(", "reduce-scatter("))
