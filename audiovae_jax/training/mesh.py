"""Devices as a one-dimensional mesh: mapping a per-device function, placing batches and state."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiovae_jax.training.step import AXIS


def make_mesh(devices=None) -> Mesh:
    """All devices (or those given) along the axis `data`."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,), devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def place_batch(mesh: Mesh, local_batch) -> jax.Array:
    """This process's rows `[b, T, C]` of a global batch, as one array over the mesh."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXIS)), local_batch)


def map_train_step(step, mesh: Mesh):
    """`(state, audio) -> (state, metrics)` per device, as one jitted function that reuses the state's memory."""
    return jax.jit(_shard_map(step, mesh, (P(), P())), donate_argnums=0)


def map_validation_step(step, mesh: Mesh):
    """`(variables, audio) -> (metrics, reconstruction)` per device, jitted."""
    return jax.jit(_shard_map(step, mesh, (P(), P(AXIS))))


def map_diagnosis(diagnose, mesh: Mesh):
    """`(state, audio) -> figures` per device, jitted."""
    return jax.jit(_shard_map(diagnose, mesh, P()))


def _shard_map(step, mesh, out_specs):
    # Without check_vma, which would ask a user's own losses and discriminators to mark the values that
    # their loops carry as varying over the mesh. The step marks its parameters, which is all it needs.
    return jax.shard_map(step, mesh=mesh, in_specs=(P(), P(AXIS)), out_specs=out_specs, check_vma=False)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split over the mesh."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
