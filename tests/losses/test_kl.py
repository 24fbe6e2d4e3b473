import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audiovae_jax import losses
from audiovae_jax.distributed import mesh
from audiovae_jax.losses.kl import KLTerm


def test_the_standard_normal_diverges_by_nothing_and_a_shift_by_half_its_square():
    zeros = jnp.zeros((2, 5, 3))
    assert losses.kl_divergence(mean=zeros, logvar=zeros) == 0.0
    assert losses.kl_divergence(mean=zeros + 2.0, logvar=zeros) == pytest.approx(0.5 * 4 * 15)
    narrow = losses.kl_divergence(mean=zeros, logvar=zeros + np.log(0.25))
    assert narrow == pytest.approx(15 * 0.5 * (np.log(4) + 0.25 - 1), rel=1e-5)


def test_free_bits_are_a_floor_of_each_element():
    zeros = jnp.zeros((2, 5, 3))
    assert losses.kl_divergence(mean=zeros, logvar=zeros, free_bits=0.5) == pytest.approx(7.5)


def test_the_frame_reduction_does_not_grow_with_the_crop():
    short, long = jnp.ones((1, 5, 3)), jnp.ones((1, 50, 3))
    values = [losses.kl_divergence(mean=m, logvar=0 * m, reduction="frame") for m in (short, long)]
    assert values[0] == pytest.approx(float(values[1]))
    with pytest.raises(ValueError, match="neither"):
        losses.kl_divergence(mean=short, logvar=short, reduction="mean")


def test_the_weight_warms_up_linearly():
    term = KLTerm(weight=1e-4, warmup_steps=5000)
    assert term.weight_at(1250) == pytest.approx(2.5e-5)
    assert term.weight_at(9000) == pytest.approx(1e-4)
    assert KLTerm(weight=1e-4, warmup_steps=0).weight_at(0) == pytest.approx(1e-4)


def test_cyclic_annealing_restarts_the_warm_up():
    term = KLTerm(weight=1e-4, warmup_steps=50, cycle_steps=100)
    steps = (0, 25, 50, 99, 100, 125, 375)
    assert [float(term.weight_at(step)) for step in steps] == pytest.approx(
        [0, 5e-5, 1e-4, 1e-4, 0, 5e-5, 1e-4], rel=1e-5
    )
    with pytest.raises(ValueError, match="warmup_steps=50 must be below 50"):
        KLTerm(warmup_steps=50, cycle_steps=49)


def test_bits_per_second_of_a_posterior_in_closed_form():
    mean = jnp.full((2, 5, 3), 2.0)
    # Each element has 2 nats, each frame 6, and 100 frames make a second.
    rate = losses.kl_bits_per_second(mean=mean, logvar=0 * mean, frame_rate=100)
    assert rate == pytest.approx(600 / np.log(2))
    term = KLTerm(weight=1.0, target_bits_per_second=400 / np.log(2), frame_rate=100)
    assert term(mean, 0 * mean) == pytest.approx(0.25)
    assert term.metrics(mean, 0 * mean) == {"kl_bits_per_second": pytest.approx(600 / np.log(2))}
    assert KLTerm().metrics(mean, 0 * mean) == {}
    assert losses.target_kl(rate=1.5, target=1.0) == pytest.approx(0.25)


def test_a_target_needs_a_frame_rate_and_excludes_free_bits():
    with pytest.raises(ValueError, match="target_bits_per_second needs frame_rate"):
        KLTerm(target_bits_per_second=1e4)
    with pytest.raises(ValueError, match="free_bits and target_bits_per_second are both set"):
        KLTerm(target_bits_per_second=1e4, frame_rate=100, free_bits=0.1)
    with pytest.raises(ValueError, match="target_bits_per_second=0.0 must be above 0"):
        KLTerm(target_bits_per_second=0.0, frame_rate=100)


@pytest.mark.parametrize("start", [0.01, 3.0])
def test_a_target_is_reached_from_both_sides(start):
    term = KLTerm(weight=1.0, target_bits_per_second=2000.0, frame_rate=100)
    optimizer = optax.adam(1e-2)

    @jax.jit
    def step(posterior, state):
        updates, state = optimizer.update(jax.grad(lambda p: term(*p))(posterior), state)
        return optax.apply_updates(posterior, updates), state

    posterior = (jnp.full((1, 4, 8), start), jnp.zeros((1, 4, 8)))
    state = optimizer.init(posterior)
    for _ in range(400):
        posterior, state = step(posterior, state)
    mean, logvar = posterior
    assert losses.kl_bits_per_second(mean=mean, logvar=logvar, frame_rate=100) == pytest.approx(2000, rel=0.05)


def test_the_rate_of_a_target_is_that_of_all_devices():
    rng = np.random.default_rng(0)
    mean, logvar = (jnp.asarray(rng.standard_normal((4, 5, 3)), jnp.float32) for _ in range(2))
    options = {"weight": 1.0, "target_bits_per_second": 300.0, "frame_rate": 100}
    alone, (of_mean, of_logvar) = jax.value_and_grad(lambda p: KLTerm(**options)(*p))((mean, logvar))

    def per_device(_, rows, __):
        mean, logvar = rows[..., 0], rows[..., 1]
        term = KLTerm(axis_name=mesh.AXIS, **options)
        value, gradients = jax.value_and_grad(lambda p: term(*p))((mean, logvar))
        return jax.lax.pmean(value, mesh.AXIS), jnp.stack(gradients, axis=-1)

    devices = mesh.make_mesh(jax.devices()[:4])
    split = mesh.map_devices(per_device, devices, (jax.P(), jax.P(mesh.AXIS)))
    value, gradients = split(jnp.zeros(()), jnp.stack([mean, logvar], axis=-1), jnp.zeros(()))
    assert value == pytest.approx(float(alone), rel=1e-5)
    # The gradient of the whole batch is the mean of the devices' gradients, each of its own rows.
    np.testing.assert_allclose(gradients / 4, np.stack([of_mean, of_logvar], axis=-1), rtol=1e-4, atol=1e-7)
