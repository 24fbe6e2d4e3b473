"""Devices as a one-dimensional mesh: mapping a per-device function, placing batches and state."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from audiovae_jax.training.step import AXIS


def make_mesh(devices=None) -> Mesh:
    """All devices (or those given) along the axis `data`, those of a process side by side.

    A process then holds the rows of a global batch that `feeding.pipeline` gives it. `jax.make_mesh` would
    order a TPU's devices by their places, which changes nothing for the one all-reduce along one axis.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same value on every device."""
    return NamedSharding(mesh, P())


def replicate(tree, sharding: NamedSharding):
    """What this process holds on one device, on all devices of `sharding`; every process has to hold the same."""

    def put(array):
        copies = [jax.device_put(array, device) for device in sharding.addressable_devices]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, copies)

    return jax.tree.map(put, tree)


def place_batch(mesh: Mesh, local_batch) -> jax.Array:
    """This process's rows `[b, T, C]` of a global batch, as one array over the mesh."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXIS)), local_batch)


def map_train_step(step, mesh: Mesh):
    """`(state, audio, *others) -> (state, metrics)` per device, as one jitted function that reuses the state's memory.

    Here and below, the others are the same on every device.
    """
    return jax.jit(_shard_map(step, mesh, (P(), P())), donate_argnums=0)


def map_validation_step(step, mesh: Mesh):
    """`(variables, audio, *others) -> (metrics, reconstruction)` per device, jitted."""
    return jax.jit(_shard_map(step, mesh, (P(), P(AXIS))))


def map_diagnosis(diagnose, mesh: Mesh):
    """`(state, audio, *others) -> figures` per device, jitted."""
    return jax.jit(_shard_map(diagnose, mesh, P()))


def _shard_map(step, mesh, out_specs):
    # Without check_vma, which would ask a user's own losses and discriminators to mark the values that
    # their loops carry as varying over the mesh. The step marks its parameters, which is all it needs.
    def mapped(state, audio, *others):
        specs = (P(), P(AXIS), *(P() for _ in others))
        per_device = jax.shard_map(step, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
        return per_device(state, audio, *others)

    return mapped


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of an array that is split over the mesh."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
