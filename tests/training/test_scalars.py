"""Numbers as arguments of the compiled programs."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from small_step import SHAPE, assert_trees_close, assert_trees_equal, batch, initial_state, make_recipe

from audiovae_jax import AdversarialLossCalculator, losses
from audiovae_jax.distributed import mesh
from audiovae_jax.losses import WeightedLosses
from audiovae_jax.losses.kl import KLTerm
from audiovae_jax.training import program, step
from audiovae_jax.training.program import scalars_of

WEIGHTS = (("l1", 100.0, losses.waveform_l1), ("si_sdr", 0.1, losses.si_sdr))


def _recipe(**changes):
    return make_recipe(losses=WeightedLosses(WEIGHTS), **changes)


def _programs(recipe):
    """Return all programs that a run compiles and caches, lowered, by name."""
    devices = mesh.make_mesh(jax.devices()[:2])
    state = program.abstract_state(recipe, devices, SHAPE)
    rows = program.abstract_batch(devices, (4, *SHAPE[1:]))
    scalars = program.abstract_scalars(recipe, devices)
    return {
        "step": program.map_step(recipe, devices, True).lower(state, rows, scalars),
        "validation": program.map_validation(recipe, devices).lower(state.variables, rows, scalars),
        "diagnosis": program.map_diagnosis(recipe, devices, True).lower(state, rows, scalars),
    }


@pytest.mark.slow
def test_a_recipe_with_other_numbers_is_the_same_program():
    recipe = _recipe()
    rates = {"num_steps": 7, "learning_rate": 2e-3, "final_learning_rate": 0.0, "warmup_steps": 5, "first_step": 3}
    other = _recipe(
        kl=KLTerm(weight=0.5, warmup_steps=0),
        adversarial=AdversarialLossCalculator(0.5, 3.0, warmup_steps=50),
        optimizer=dataclasses.replace(recipe.optimizer, **rates),
        discriminator_optimizer=dataclasses.replace(recipe.discriminator_optimizer, **rates),
        seed=2**32 - 1,
    )
    other = dataclasses.replace(
        other, losses=WeightedLosses(tuple((name, 3.0 * weight, fn) for name, weight, fn in WEIGHTS))
    )
    theirs = _programs(other)
    for name, lowered in _programs(recipe).items():
        assert lowered.as_text() == theirs[name].as_text(), name


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        {"losses": WeightedLosses((WEIGHTS[0], ("si_sdr", 0.0, losses.si_sdr)))},
        {"kl": KLTerm(weight=0.0, warmup_steps=10)},
        {"adversarial": AdversarialLossCalculator(feature_matching_weight=0.0)},
    ],
)
def test_a_weight_of_zero_is_another_program_and_costs_less(change):
    recipe = _recipe()
    whole, without = (_programs(each)["step"] for each in (recipe, dataclasses.replace(recipe, **change)))
    assert len(without.as_text()) < len(whole.as_text())
    assert without.cost_analysis()["flops"] < whole.cost_analysis()["flops"]


@pytest.mark.slow
def test_numbers_that_are_arguments_give_what_constants_give():
    recipe = _recipe(kl=KLTerm(weight=0.3, warmup_steps=2))
    devices = mesh.make_mesh(jax.devices()[:1])
    constant = mesh.map_devices(
        functools.partial(step.train_step, recipe=recipe, adversarial=True), devices, (jax.P(), jax.P())
    )
    train_step, scalars = program.map_step(recipe, devices, True), program.place_scalars(recipe, devices)
    state, history = initial_state(recipe, devices), []
    for i in range(3):
        rows = mesh.place_batch(devices, batch(i))
        # Both start from one state, since Adam amplifies rounding of the previous step.
        expected = constant(state, rows)
        state, metrics = train_step(state, rows, scalars)
        assert_trees_close(jax.device_get((state, metrics)), jax.device_get(expected), rtol=1e-5)
        history.append(float(metrics["kl_weight"]))
    assert history == pytest.approx([0.0, 0.15, 0.3])


@pytest.mark.slow
def test_each_number_has_an_effect():
    """One compiled step, given the numbers of another recipe, computes that recipe's step."""
    recipe, devices = _recipe(kl=KLTerm(weight=1e-3, warmup_steps=0)), mesh.make_mesh(jax.devices()[:1])
    train_step = program.map_step(recipe, devices, True)
    rows = mesh.place_batch(devices, batch())

    def after(scalars):
        placed = mesh.replicate(scalars, mesh.replicated(devices))
        state, metrics = jax.device_get(train_step(initial_state(recipe, devices), rows, placed))
        return {**metrics, "params": state.params["decoder"], "judge": state.discriminator_params}

    ours = scalars_of(recipe)
    first = after(ours)
    for part, name, seen in (
        ("losses", "l1", "total_g_loss"),
        ("losses", "si_sdr", "total_g_loss"),
        ("kl", "weight", "kl_weight"),
        ("kl", "warmup_steps", "kl_weight"),
        ("adversarial", "adversarial_weight", "total_g_loss"),
        ("adversarial", "feature_matching_weight", "total_g_loss"),
        ("optimizer", "learning_rate", "params"),
        ("optimizer", "warmup_steps", "params"),
        ("discriminator_optimizer", "learning_rate", "judge"),
        ("discriminator_optimizer", "first_step", "judge"),
    ):
        changed = after({**ours, part: {**ours[part], name: np.float32(2 * ours[part][name] + 2)}})
        before, now = jax.tree.leaves(first[seen]), jax.tree.leaves(changed[seen])
        assert any((a != b).any() for a, b in zip(before, now, strict=True)), (part, name)
        unmoved = "judge" if part in ("optimizer", "kl", "losses") else "kl_weight"
        assert_trees_equal(first[unmoved], changed[unmoved])
    assert after({**ours, "seed": np.uint32(1)})["kl_loss"] == first["kl_loss"]  # of the mean, which has no noise
    assert after({**ours, "seed": np.uint32(1)})["l1"] != first["l1"]
