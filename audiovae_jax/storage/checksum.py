"""Checksums of arrays, computed on their devices, and of JSON values.

Array stores do not verify contents, so a flipped bit in storage would go undetected. Here each element is mixed with
its index by a bijection (the finalizer of MurmurHash3), and the results are added. A change of one element always
changes the sum. Other damage is missed with a probability of about one in 2^32.
"""

import hashlib
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


def checksums(tree: PyTree) -> dict[str, str]:
    """Return `{"params/encoder/...": eight hex digits}`, equal on all devices."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    arrays = [leaf for _, leaf in leaves]
    # Numpy arrays are summed on the host, where no compilation is needed. Compiling takes longer than summing a model.
    on_host = all(isinstance(array, np.ndarray) for array in arrays)
    sums = [_sum(array, np) for array in arrays] if on_host else jax.device_get(_sums(arrays))
    return {name: f"{int(s):08x}" for name, s in zip(names, sums, strict=True)}


def json_checksum(content: dict) -> str:
    """Return sixteen hex digits for a JSON value, ignoring its entry `checksum`.

    The value is first converted to JSON and back, so key order and whitespace do not matter.

    Raises:
      TypeError, ValueError, RecursionError: the value cannot be represented in JSON.
    """
    content = json.loads(json.dumps({**content, "checksum": None}))
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


@jax.jit
def _sums(arrays):
    return [_sum(array, jnp) for array in arrays]


def _sum(x, xnp):
    """Return the checksum as a uint32, computed with numpy or jax.numpy."""
    if x.dtype == np.bool_:
        x = x.astype(np.uint8)
    bits = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint32}[x.dtype.itemsize]
    x = np.ascontiguousarray(x).reshape(-1).view(bits) if xnp is np else jax.lax.bitcast_convert_type(x, bits)
    x = x.astype(np.uint32).reshape(-1)
    x = x ^ (xnp.arange(x.size, dtype=np.uint32) * np.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * np.uint32(factor)
    return xnp.sum(x ^ (x >> 16), dtype=np.uint32)
