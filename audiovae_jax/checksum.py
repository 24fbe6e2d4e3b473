"""A checksum per array of a tree, computed where the arrays are.

Storage that flips a bit tells nobody: array stores check no contents. Here each element is mixed with
its index by a bijection (the finaliser of MurmurHash3) and the results are added: one changed element
always changes the sum, and other damage goes unseen with a chance of about one in 2^32.
"""

from typing import Any

import jax
import jax.numpy as jnp

PyTree = Any


def checksums(tree: PyTree) -> dict[str, str]:
    """`{"params/encoder/...": eight hex digits}` for every array of `tree`; the same on any device."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves]
    sums = jax.device_get(_sums([leaf for _, leaf in leaves]))
    return {name: f"{int(s):08x}" for name, s in zip(names, sums, strict=True)}


@jax.jit
def _sums(leaves):
    return [_sum(leaf) for leaf in leaves]


def _sum(x):
    if x.dtype == jnp.bool_:
        x = x.astype(jnp.uint8)
    bits = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32, 8: jnp.uint32}[x.dtype.itemsize]
    x = jax.lax.bitcast_convert_type(x, bits).astype(jnp.uint32).reshape(-1)
    x = x ^ (jnp.arange(x.size, dtype=jnp.uint32) * jnp.uint32(0x9E3779B9))
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> shift)) * jnp.uint32(factor)
    return jnp.sum(x ^ (x >> 16), dtype=jnp.uint32)
