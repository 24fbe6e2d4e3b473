"""A mesh of devices along one axis: mapped functions, batches and state."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

AXIS = "data"  # the mesh axis that a batch is split along


def make_mesh(devices=None) -> Mesh:
    """Return a mesh of all devices (or those given) along the axis `data`.

    The devices of a process are adjacent, so its rows of a global batch are contiguous.
    """
    devices = jax.devices() if devices is None else devices
    devices = sorted(devices, key=lambda device: (device.process_index, device.id))
    return Mesh(np.array(devices), (AXIS,), axis_types=(jax.sharding.AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of a value that is the same on every device."""
    return NamedSharding(mesh, P())


def replicate(tree, sharding: NamedSharding):
    """Copy a tree to all devices of `sharding`.

    It must be the same in every process.
    """

    def put(array):
        copies = [jax.device_put(array, device) for device in sharding.addressable_devices]
        return jax.make_array_from_single_device_arrays(array.shape, sharding, copies)

    return jax.tree.map(put, tree)


def place_batch(mesh: Mesh, local_batch) -> jax.Array:
    """Make a global batch over the mesh from this process's rows `[b, T, C]`."""
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXIS)), local_batch)


def map_devices(per_device, mesh: Mesh, out_specs, **jit_options) -> jax.stages.Wrapped:
    """Jit `per_device(state, batch, *others)` over the mesh.

    Args:
      per_device: runs under the mapped axis `data`. The batch is split over the devices, all else is replicated.
      mesh: the devices.
      out_specs: `P()` for outputs that are the same on every device, `P(AXIS)` for rows of the batch.
      **jit_options: for `jax.jit`.
    """

    # Without check_vma, a user's own losses and discriminators need not mark the values that their loops carry as
    # varying over the mesh. The step marks its parameters, which is all it needs.
    def mapped(state, batch, *others):
        specs = (P(), P(AXIS), *(P() for _ in others))
        return jax.shard_map(per_device, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)(
            state, batch, *others
        )

    return jax.jit(mapped, **jit_options)


def local_rows(array: jax.Array) -> np.ndarray:
    """Return this process's rows of an array that is split over the mesh."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])
