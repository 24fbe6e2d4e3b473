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
    ADAMW,
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
from audiovae_jax.losses.alignment import Alignment
from audiovae_jax.losses.kl import KLTerm
from audiovae_jax.training import program, step
from audiovae_jax.training.ema import Ema
from audiovae_jax.training.optimizer import Optimizer


@pytest.mark.slow
def test_four_devices_give_the_numbers_of_one():
    one, one_history = run(make_recipe(), steps=3)
    four, four_history = run(make_recipe(), steps=3, devices=4)
    assert all(m["g_grad_norm"] > 1.0 for m in one_history)  # the clip is active
    optimizers = (make_recipe().optimizer, make_recipe().discriminator_optimizer)
    for name, optimizer in zip(("learning_rate", "discriminator_learning_rate"), optimizers, strict=True):
        rates = [metrics[name] for metrics in one_history]
        np.testing.assert_allclose(rates, optimizer.learning_rate_at(np.arange(3)), rtol=1e-6)
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
    assert not {"d_loss", "discriminator_learning_rate"} & history[0].keys()
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


@pytest.mark.slow
def test_parts_of_a_batch_give_the_update_of_the_whole():
    recipe = make_recipe(ema=Ema(decay=0.5))
    whole, whole_history = run(recipe, steps=3)
    parts, history = run(dataclasses.replace(recipe, accumulation_steps=2), steps=3)
    assert_trees_close(parts, whole, rtol=1e-5)
    for a, b in zip(history, whole_history, strict=True):
        assert_trees_close(a, b, rtol=1e-5)


@pytest.mark.slow
def test_parts_follow_the_intervals_of_updates_and_skip_what_is_not_finite():
    recipe = make_recipe(generator_update_every=2, discriminator_update_every=3)
    whole, _ = run(recipe, steps=4, devices=2)
    parts, _ = run(dataclasses.replace(recipe, accumulation_steps=2), steps=4, devices=2)
    assert_trees_close(parts, whole, rtol=1e-5)
    broken = dataclasses.replace(recipe, losses=WeightedLosses((("l1", 1e38, lambda **audio: jnp.inf),)))
    state, history = run(dataclasses.replace(broken, accumulation_steps=2))
    assert history[0]["g_skipped"]
    assert_trees_equal(state.params, jax.device_get(initial_state(recipe)).params)


@pytest.mark.slow
def test_the_average_follows_every_step_and_leaves_training_alone():
    plain, _ = run(make_recipe(), steps=2)
    averaged, _ = run(make_recipe(ema=Ema(decay=0.75)), steps=2)
    assert_trees_equal(averaged.params, plain.params)
    first, _ = run(make_recipe(), steps=1)
    start = jax.device_get(initial_state(make_recipe())).params
    expected = jax.tree.map(lambda a, b, c: 0.75 * (0.75 * a + 0.25 * b) + 0.25 * c, start, first.params, plain.params)
    assert_trees_close(averaged.averaged_params, expected, rtol=1e-5)
    assert_trees_equal(averaged.evaluation_variables["params"], averaged.averaged_params)


@pytest.mark.parametrize("name", ["lion", "adafactor", "muon", "schedule_free_adamw"])
@pytest.mark.slow
def test_every_optimizer_trains_with_frozen_parts_and_latent_noise(name):
    def optimizer(**options):
        return Optimizer(
            num_steps=100, learning_rate=1e-3, **{**ADAMW, "name": name, "schedule": "constant", **options}
        )

    recipe = make_recipe(
        optimizer=optimizer(learning_rate_factors=(("encoder", 0.0), ("*/bias", 0.0))),
        discriminator_optimizer=optimizer(),
        latent_noise=0.3,
    )
    initial = jax.device_get(initial_state(recipe))
    state, history = run(recipe, steps=5)
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())
    old, new = (flax.traverse_util.flatten_dict(each.params) for each in (initial, state))
    for path in old:
        is_frozen = path[0] == "encoder" or path[-1] == "bias"
        assert (old[path] == new[path]).all() == is_frozen, path
    moments = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state.opt_state)]
    assert not any("encoder" in path or "bias" in path for path in moments)
    if name == "schedule_free_adamw":
        merged = flax.traverse_util.flatten_dict(state.evaluation_variables["params"])
        assert merged.keys() == new.keys()
        assert any((merged[path] != new[path]).any() for path in new)


def test_latent_noise_adds_to_the_posteriors_variance():
    model = AudioVAE(base_channels=4, channel_mults=(1,), strides=(4,), latent_dim=4, dilations=(1,))
    audio = jnp.asarray(batch(size=1))
    variables = model.init(jax.random.key(0), audio, deterministic=True)
    noise = jax.random.normal(jax.random.key(1), (1, 64, 4))
    plain, noisy = (
        model.apply(variables, audio, noise=noise, latent_noise=sigma, method="encode") for sigma in (0.0, 2.0)
    )
    expected = plain.mean + noise * jnp.sqrt(jnp.exp(plain.logvar) + 4.0)
    np.testing.assert_allclose(noisy.z, expected, rtol=1e-4, atol=1e-5)
    assert_trees_equal((noisy.mean, noisy.logvar), (plain.mean, plain.logvar))


@pytest.mark.slow
def test_balanced_losses_ignore_the_scale_of_a_loss():
    def recipe(scale, **options):
        terms = (
            ("l1", 1.0, lambda **audio: scale * losses.waveform_l1(**audio)),
            ("sdr", 1.0, losses.si_sdr),
        )
        return make_recipe(losses=WeightedLosses(terms), balancer_norm=1.0, kl=KLTerm(weight=0.0), **options)

    (one, history), (other, _) = run(recipe(1.0), steps=3), run(recipe(1000.0), steps=3)
    assert_trees_close(other.params, one.params, rtol=1e-4)
    assert changed(one.params, jax.device_get(initial_state(recipe(1.0))).params)
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())
    devices, _ = run(recipe(1.0), steps=3, devices=4)
    assert_trees_close(devices.params, one.params, rtol=1e-4)


def _on_host(audio, sample_rate):
    assert isinstance(audio, np.ndarray)
    assert sample_rate == 8000
    blocks = audio.reshape(8, -1)
    return np.stack([blocks.mean(1), blocks.std(1), np.abs(blocks).max(1)], axis=1)


def _in_batches(audio, sample_rate):
    blocks = audio.reshape(audio.shape[0], 8, -1)
    return jnp.stack([blocks.mean(2), blocks.std(2), jnp.abs(blocks).max(2)], axis=2)


_in_batches.takes_batches = True


def _aligned_recipe():
    """No other loss has a gradient, and the factors freeze all of the model but the encoder."""
    optimizer = Optimizer(num_steps=100, learning_rate=1e-2, **ADAMW)
    return make_recipe(
        losses=WeightedLosses((("l1", 0.0, losses.waveform_l1),)),
        kl=KLTerm(weight=0.0),
        alignment=Alignment(_in_batches, 8000, frames=8, size=3, cosine_margin=0.1, distance_margin=0.0),
        optimizer=dataclasses.replace(optimizer, learning_rate_factors=(("encoder", 1.0), ("*", 0.0))),
        ema=Ema(decay=0.5),
    )


@pytest.mark.slow
def test_an_alignment_trains_the_encoder_and_its_projection():
    recipe = _aligned_recipe()
    initial = jax.device_get(initial_state(recipe))
    trained, history = run(recipe, steps=5, adversarial=False)
    values = [metrics["alignment_loss"] for metrics in history]
    assert values[-1] < 0.8 * values[0]
    assert history[0]["total_g_loss"] == pytest.approx(0.1 * values[0], rel=1e-6)
    assert changed(trained.params["encoder"], initial.params["encoder"])
    assert changed(trained.alignment_params, initial.alignment_params)
    assert trained.alignment_params["kernel"].shape == (4, 3)
    assert_trees_equal(trained.params["decoder"], initial.params["decoder"])
    assert list(optax.tree.get(trained.opt_state, "mu")) == ["alignment", "encoder"]
    assert list(trained.averaged_params) == ["encoder"]

    devices = mesh.make_mesh(jax.devices()[:1])
    metrics, _ = program.map_validation(recipe, devices)(
        trained.validation_variables, mesh.place_batch(devices, batch()), program.place_scalars(recipe, devices)
    )
    assert 0 < metrics["alignment_loss"] < values[0]
    assert metrics["total_loss"] == pytest.approx(0.1 * float(metrics["alignment_loss"]), rel=1e-6)


@pytest.mark.slow
def test_a_teacher_on_the_host_gives_the_numbers_of_one_in_jax_on_any_number_of_devices_and_parts():
    recipe = _aligned_recipe()
    trained, history = run(recipe, steps=5)
    on_host = dataclasses.replace(recipe.alignment, teacher=_on_host)
    other, other_history = run(dataclasses.replace(recipe, alignment=on_host, accumulation_steps=2), steps=5, devices=2)
    assert_trees_close(other, trained, rtol=1e-4)
    assert_trees_close(other_history, history, rtol=1e-4)
