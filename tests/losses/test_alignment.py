import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from audiovae_jax.losses import alignment


def _normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _cosine(a, b):
    return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)


def test_both_losses_are_those_of_the_paper():
    z, teacher = _normal(0, 2, 5, 3), _normal(1, 2, 5, 3)
    cosine = np.maximum(1 - 0.5 - _cosine(z, teacher), 0).mean()
    assert alignment.marginal_cosine(z, teacher, 0.5) == pytest.approx(cosine, rel=1e-5)
    wide = _normal(2, 2, 5, 7)
    pairs = [_cosine(a[:, :, None], a[:, None]) for a in (z, wide)]
    distance = np.maximum(np.abs(pairs[0] - pairs[1]) - 0.25, 0).mean()
    assert alignment.distance_matrix(z, wide, 0.25) == pytest.approx(distance, rel=1e-5)


def test_what_is_aligned_up_to_the_margin_costs_nothing_and_the_opposite_costs_most():
    z = _normal(0, 1, 4, 3)
    assert alignment.marginal_cosine(2 * z, z, 0.0) == pytest.approx(0, abs=1e-6)
    assert alignment.marginal_cosine(-z, z, 0.5) == pytest.approx(1.5, rel=1e-5)
    rotation, _ = np.linalg.qr(_normal(1, 3, 3))
    assert alignment.distance_matrix(z @ rotation, 3 * z, 0.0) == pytest.approx(0, abs=1e-5)
    assert alignment.distance_matrix(z, _normal(2, 1, 4, 3), 2.0) == 0


@pytest.mark.parametrize("frames", [3, 5, 12, 31])
def test_a_teacher_of_another_rate_is_interpolated_linearly(frames):
    teacher = _normal(0, 2, 12, 3)
    centers = (np.arange(frames) + 0.5) * 12 / frames - 0.5
    expected = np.stack([[np.interp(centers, np.arange(12), item[:, d]) for d in range(3)] for item in teacher])
    expected = expected.swapaxes(1, 2)
    np.testing.assert_allclose(alignment.align_frames(teacher, frames), expected, atol=1e-5)
    z = _normal(1, 2, frames, 3)
    for loss in (alignment.marginal_cosine, alignment.distance_matrix):
        assert loss(z, teacher, 0.1) == pytest.approx(float(loss(z, expected, 0.1)), rel=1e-4)


def test_gradients_reach_the_latents_only_and_bring_them_to_the_teacher():
    teacher = jnp.asarray(_normal(1, 2, 9, 3))

    def loss(z, teacher):
        return alignment.marginal_cosine(z, teacher, 0.1) + alignment.distance_matrix(z, teacher, 0.1)

    to_z, to_teacher = jax.grad(loss, argnums=(0, 1))(jnp.asarray(_normal(0, 2, 5, 3)), teacher)
    assert jnp.all(jnp.any(to_z != 0, axis=-1))
    assert not jnp.any(to_teacher)
    silent = jax.grad(loss)(jnp.zeros((2, 5, 3)), teacher)
    assert jnp.all(jnp.isfinite(silent))
    optimizer, z = optax.adam(0.05), jnp.asarray(_normal(0, 2, 5, 3))
    state, gradient = optimizer.init(z), jax.jit(jax.grad(loss))
    before = loss(z, teacher)
    for _ in range(60):
        updates, state = optimizer.update(gradient(z, teacher), state)
        z = optax.apply_updates(z, updates)
    assert loss(z, teacher) < 0.05 * before


def test_the_term_is_the_sum_of_both_losses_of_the_projected_latents():
    def teacher(crop, sample_rate):
        return sample_rate * crop.reshape(6, -1)

    audio, z, kernel = jnp.asarray(_normal(0, 2, 24, 2)), _normal(1, 2, 5, 3), _normal(2, 3, 8)
    term = alignment.Alignment(teacher, 10, frames=6, size=8, cosine_margin=0.2, distance_margin=0.1)
    features = jax.jit(term.features)(audio)
    np.testing.assert_allclose(features, 10 * audio.reshape(2, 6, 8), rtol=1e-6)
    expected = alignment.marginal_cosine(z @ kernel, features, 0.2) + alignment.distance_matrix(z, features, 0.1)
    assert term(z, features, {"kernel": kernel}) == pytest.approx(float(expected), rel=1e-5)
    assert term.init(jax.random.key(0), 3)["kernel"].shape == (3, 8)
    with pytest.raises(ValueError, match="cosine_margin=-1 must not be negative"):
        alignment.Alignment(teacher, 10, frames=6, size=8, cosine_margin=-1)


def test_features_of_another_shape_than_announced_end_the_call():
    term = alignment.Alignment(lambda crop, rate: crop, 10, frames=6, size=8)
    with pytest.raises(Exception, match=r"config.alignment returned features \(24, 2\), not \(6, 8\)"):
        jax.block_until_ready(term.features(jnp.zeros((2, 24, 2))))


_CROPS_OF_SEVERAL_DEVICES = """
import jax
import numpy as np

jax.config.update("jax_num_cpu_devices", 4)
from audiovae_jax.distributed import mesh
from audiovae_jax.losses.alignment import Alignment

devices = mesh.make_mesh()
term = Alignment(lambda crop, rate: crop.reshape(64, -1), 44100, 64, 2048)


def sum_features(state, audio):
    return jax.lax.pmean(state + term.features(audio).sum(), mesh.AXIS)


step = mesh.map_devices(sum_features, devices, jax.P())
for _ in range(3):
    total = step(np.float32(0), mesh.place_batch(devices, np.ones((8, 65536, 2), np.float32)))
print(float(total))
"""


@pytest.mark.slow
def test_crops_of_several_devices_reach_the_host_on_few_cores():
    made = subprocess.run(
        [sys.executable, "-c", _CROPS_OF_SEVERAL_DEVICES], capture_output=True, text=True, timeout=240, check=True
    )
    assert float(made.stdout) == 2 * 65536 * 2


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="same batch"):
        alignment.distance_matrix(_normal(0, 2, 5, 3), _normal(0, 1, 5, 3))
    with pytest.raises(ValueError, match="projected has 3 features and teacher 4"):
        alignment.marginal_cosine(_normal(0, 2, 5, 3), _normal(0, 2, 5, 4))
