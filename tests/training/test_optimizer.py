import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audiovae_jax.training.optimizer import OPTIMIZERS, Optimizer

OPTIONS = {"num_steps": 100, "learning_rate": 1e-2, "final_learning_rate": 1e-3, "b1": 0.9, "b2": 0.999, "eps": 1e-8}


def _optimizer(**numbers):
    return Optimizer(**OPTIONS | {"weight_decay": 0.0, "clip_norm": 0.0} | numbers)


def test_the_learning_rate_is_a_cosine_between_its_ends():
    for step, expected in ((0, 1e-2), (50, 5.5e-3), (100, 1e-3), (1000, 1e-3)):
        assert float(_optimizer().learning_rate_at(step)) == pytest.approx(expected, rel=1e-5)


def test_equal_ends_are_a_constant_rate():
    constant = _optimizer(final_learning_rate=1e-2)
    assert {float(constant.learning_rate_at(step)) for step in (0, 50, 1000)} == {float(np.float32(1e-2))}


def test_the_rate_rises_in_a_line_to_the_cosines():
    warm, cold = _optimizer(warmup_steps=4), _optimizer()
    for step, share in ((0, 0.25), (1, 0.5), (3, 1.0), (4, 1.0), (50, 1.0)):
        expected = share * float(cold.learning_rate_at(step))
        assert float(warm.learning_rate_at(step)) == pytest.approx(expected, rel=1e-6)


def test_the_warm_up_of_a_network_that_joins_late_begins_with_it():
    late = _optimizer(warmup_steps=4, first_step=20)
    assert float(late.learning_rate_at(20)) == pytest.approx(0.25 * float(_optimizer().learning_rate_at(20)))
    assert float(late.learning_rate_at(30)) == float(_optimizer().learning_rate_at(30))
    # It was trained before in a checkpoint, and starts later in the run that is initialized from it.
    assert float(late.learning_rate_at(3)) == 0.0


def test_a_rate_that_is_traced_is_the_rate_that_is_not():
    jitted = jax.jit(lambda step, **numbers: _optimizer(**numbers).learning_rate_at(step))
    numbers = {"learning_rate": 1e-2, "final_learning_rate": 0.0, "num_steps": 100, "warmup_steps": 0, "first_step": 0}
    for change in ({}, {"warmup_steps": 70}, {"first_step": 30}, {"final_learning_rate": 1e-2}):
        changed = numbers | change
        expected = float(_optimizer(**changed).learning_rate_at(60))
        assert float(jitted(60, **changed)) == pytest.approx(expected, rel=1e-6), change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": 0.0}, "learning_rate=0.0 must be above 0"),
        ({"warmup_steps": -1}, "warmup_steps=-1 must not be negative"),
        ({"num_steps": 0}, "num_steps=0 must be above 0"),
        ({"name": "sgd"}, "name='sgd' is unknown; choose from adamw, lion"),
        ({"schedule": "linear"}, "schedule='linear' is unknown; choose from cosine"),
        ({"schedule": "inverse_sqrt"}, "needs decay_steps above 0"),
        ({"name": "schedule_free_adamw", "b1": 0.0}, "b1=0 leaves schedule_free_adamw without its average"),
        ({"learning_rate_factors": ("encoder", 0.0)}, "give pairs of a pattern and a factor"),
    ],
)
def test_numbers_out_of_range_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        _optimizer(**change)


def test_the_state_is_what_checkpoints_hold():
    """Checkpoints identify arrays by their paths in this tree."""
    params = {"w": jnp.ones(2)}
    state = jax.tree_util.tree_leaves_with_path(_optimizer(warmup_steps=3).init(params))
    assert [jax.tree_util.keystr(path) for path, _ in state] == ["[1].count", "[1].mu['w']", "[1].nu['w']"]


def test_an_update_is_adams_and_decays_every_parameter():
    optimizer = _optimizer(weight_decay=0.1)
    params = {"w": jnp.array([2.0, -4.0])}
    updates, _ = optimizer.update({"w": jnp.array([1.0, -3.0])}, optimizer.init(params), params, step=50)
    # The first step of Adam is the gradient's sign, for any size.
    np.testing.assert_allclose(updates["w"], -5.5e-3 * (np.array([1.0, -1.0]) + 0.1 * np.array([2.0, -4.0])), rtol=1e-5)


def test_the_rate_follows_the_step_and_not_the_count_of_updates():
    optimizer = _optimizer()
    params = {"w": jnp.ones(2)}
    state = optimizer.init(params)
    early, _ = optimizer.update({"w": jnp.ones(2)}, state, params, step=0)
    late, _ = optimizer.update({"w": jnp.ones(2)}, state, params, step=100)
    np.testing.assert_allclose(early["w"] / late["w"], 10.0, rtol=1e-5)


def test_clipping_bounds_the_global_norm_and_keeps_the_direction():
    optimizer = _optimizer(clip_norm=1.0)
    params = {"a": jnp.zeros(1), "b": jnp.zeros(1)}
    _, state = optimizer.update(
        {"a": jnp.array([30.0]), "b": jnp.array([40.0])}, optimizer.init(params), params, step=0
    )
    moments = optax.tree.get(state, "mu")
    np.testing.assert_allclose([moments["a"][0], moments["b"][0]], [0.1 * 0.6, 0.1 * 0.8], rtol=1e-5)


def test_moments_and_steps_are_those_of_optax():
    ours = _optimizer(final_learning_rate=1e-2, weight_decay=0.1)
    theirs = optax.adamw(1e-2, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1)
    rng = np.random.default_rng(0)
    params = [{"w": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)}] * 2
    states = [ours.init(params[0]), theirs.init(params[0])]
    for step in range(5):
        gradient = {"w": jnp.asarray(rng.standard_normal((4, 3)), jnp.float32)}
        updates, states[0] = ours.update(gradient, states[0], params[0], step=step)
        params[0] = optax.apply_updates(params[0], updates)
        updates, states[1] = theirs.update(gradient, states[1], params[1])
        params[1] = optax.apply_updates(params[1], updates)
    np.testing.assert_allclose(params[0]["w"], params[1]["w"], rtol=1e-6)
    for name in ("mu", "nu", "count"):
        jax.tree.map(np.testing.assert_array_equal, *(optax.tree.get(state, name) for state in states))


def test_a_state_that_is_not_to_change_does_not():
    optimizer = _optimizer()
    params = {"w": jnp.ones(2)}
    gradient = {"w": jnp.asarray([1.0, jnp.nan])}
    _, state = optimizer.update({"w": jnp.ones(2)}, optimizer.init(params), params, step=0)

    @jax.jit
    def update(state, apply):
        return optimizer.update(gradient, state, params, step=1, apply=apply)[1]

    jax.tree.map(np.testing.assert_array_equal, update(state, jnp.asarray(False)), state)
    assert optax.tree.get(update(state, jnp.asarray(True)), "count") == 2


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a matter of XLA for CPUs")
def test_no_moment_is_copied():
    optimizer = _optimizer()
    params = {"w": jnp.ones((256, 256))}

    def step(params, state, x):
        gradient = jax.grad(lambda params: jnp.sum(jnp.sin(x @ params["w"]) ** 2))(params)
        whole = jnp.isfinite(optax.tree.norm(gradient))
        updates, state = optimizer.update(gradient, state, params, step=3, apply=whole)
        new = optax.apply_updates(params, updates)
        return jax.tree.map(lambda new, old: jnp.where(whole, new, old), new, params), state

    lowered = jax.jit(step, donate_argnums=(0, 1)).lower(params, optimizer.init(params), jnp.ones((8, 256)))
    copied = [
        line for line in lowered.compile().as_text().splitlines() if " = f32[256,256]" in line and " copy(" in line
    ]
    assert not copied, copied


def test_other_schedules_follow_their_formulas():
    def rates(steps, **options):
        return [float(_optimizer(**options).learning_rate_at(step)) for step in steps]

    assert rates((0, 70, 200), schedule="constant") == pytest.approx([1e-2] * 3)
    falling = rates((0, 30, 80, 10**6), schedule="inverse_sqrt", decay_steps=10)
    assert falling == pytest.approx([1e-2, 1e-2 / 2, 1e-2 / 3, 1e-3])
    stable = rates((0, 80, 90, 100, 150), schedule="warmup_stable_decay", decay_steps=20)
    assert stable == pytest.approx([1e-2, 1e-2, 5.5e-3, 1e-3, 1e-3])
    assert rates((0, 3), schedule="constant", warmup_steps=4) == pytest.approx([2.5e-3, 1e-2])


def _reference(name):
    """The same optimizer, as optax has it."""
    if name == "lion":
        return optax.lion(1e-2, b1=0.9, b2=0.999, weight_decay=0.1)
    if name == "adafactor":
        return optax.chain(optax.adafactor(weight_decay_rate=0.1), optax.scale(1e-2))
    if name == "muon":
        axes = optax.contrib.MuonDimensionNumbers((0, 1), 2)
        return optax.contrib.muon(
            1e-2, weight_decay=0.1, adam_b2=0.999, adam_weight_decay=0.1,
            muon_weight_dimension_numbers=lambda params: {"kernel": axes, "bias": None},
        )  # fmt: skip
    return optax.contrib.schedule_free_adamw(1e-2, b1=0.9, b2=0.999, weight_decay=0.1)


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "adamw"])
def test_other_optimizers_are_those_of_optax(name):
    ours, theirs = _optimizer(name=name, schedule="constant", weight_decay=0.1), _reference(name)
    rng = np.random.default_rng(0)

    def draw():
        shapes = {"kernel": (3, 4, 5), "bias": (5,)}
        return {key: jnp.asarray(rng.standard_normal(shape), jnp.float32) for key, shape in shapes.items()}

    params = [draw()] * 2
    states = [ours.init(params[0]), theirs.init(params[0])]
    update = jax.jit(lambda gradient, state, params: ours.update(gradient, state, params, step=3))
    for _ in range(3):
        gradient = draw()
        updates, states[0] = update(gradient, states[0], params[0])
        params[0] = optax.apply_updates(params[0], updates)
        updates, states[1] = jax.jit(theirs.update)(gradient, states[1], params[1])
        params[1] = optax.apply_updates(params[1], updates)
    for key in params[0]:
        np.testing.assert_allclose(params[0][key], params[1][key], rtol=1e-4, atol=1e-6)
    if ours.averages:
        averaged = ours.evaluation_params(states[0], params[0])
        expected = optax.contrib.schedule_free_eval_params(states[1], params[1])
        np.testing.assert_allclose(averaged["kernel"], expected["kernel"], rtol=1e-4, atol=1e-6)
        assert np.abs(averaged["kernel"] - params[0]["kernel"]).max() > 1e-4
    kept = ours.update(jax.tree.map(lambda x: x * jnp.nan, gradient), states[0], params[0], step=3, apply=False)[1]
    jax.tree.map(np.testing.assert_array_equal, kept, states[0])


def test_the_first_factor_that_matches_scales_the_rate():
    factors = (("decoder/final", 0.5), ("decoder", 0.1), ("*/bias", 0.0))
    params = {
        "decoder": {"final": {"bias": jnp.ones(1)}, "b": jnp.ones(1)},
        "e": {"bias": jnp.ones(1), "v": jnp.ones(1)},
    }
    plain, scaled = _optimizer(), _optimizer(learning_rate_factors=factors)
    updates = [each.update(params, each.init(params), params, step=0)[0] for each in (plain, scaled)]
    ratios = jax.tree.map(lambda a, b: float(b[0] / a[0]), *updates)
    expected = {"decoder": {"final": {"bias": 0.5}, "b": 0.1}, "e": {"bias": 0.0, "v": 1.0}}
    jax.tree.map(lambda ratio, factor: np.testing.assert_allclose(ratio, factor, rtol=1e-6), ratios, expected)
