import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from audiovae_jax.distributed import mesh


@pytest.mark.parametrize("count", [1, 4])
def test_a_batch_is_split_over_the_devices_and_comes_back_in_order(count):
    devices = mesh.make_mesh(jax.devices()[:count])
    rows = np.arange(8 * 3 * 2, dtype=np.float32).reshape(8, 3, 2)
    placed = mesh.place_batch(devices, rows)
    assert placed.shape == (8, 3, 2)
    assert {shard.data.shape[0] for shard in placed.addressable_shards} == {8 // count}
    np.testing.assert_array_equal(mesh.local_rows(placed), rows)


def test_mapped_steps_see_their_rows_and_share_what_they_mean():
    devices = mesh.make_mesh()

    def step(scale, audio):
        mean = lax.pmean(jnp.mean(audio), "data")
        return scale * mean, audio - mean

    rows = np.arange(8, dtype=np.float32).reshape(8, 1, 1)
    mapped = mesh.map_devices(step, devices, (jax.P(), jax.P(mesh.AXIS)))
    mean, rest = mapped(jnp.float32(2), mesh.place_batch(devices, rows))
    assert float(mean) == 7.0
    np.testing.assert_array_equal(mesh.local_rows(rest), rows - 3.5)


def test_a_state_is_on_every_device():
    devices = mesh.make_mesh()
    state = jax.device_put(jnp.arange(3), mesh.replicated(devices))
    assert len(state.addressable_shards) == jax.device_count()
    assert all(shard.data.shape == (3,) for shard in state.addressable_shards)
