"""Trees of arrays on disk, stored with Orbax.

Each array is verified against a description that the caller stores.
"""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from audiovae_jax.errors import CheckpointError
from audiovae_jax.storage.checksum import checksums

PyTree = Any


def describe(tree: PyTree) -> dict[str, str]:
    """Return dtype, shape and checksum of a tree's arrays.

    The result is of the form `{"params/encoder/...": "float32[7, 2, 8] 1a2b3c4d"}`.
    """
    sums = checksums(tree)
    return {name: f"{kind} {sums[name]}" for name, kind in describe_shapes(tree).items()}


def describe_shapes(tree: PyTree) -> dict[str, str]:
    """Return `{"params/encoder/...": "float32[7, 2, 8]"}` for arrays or shapes.

    Named tuples and dicts with the same keys result in the same names.
    """
    return {name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves(tree).items()}


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """Return `{"params/encoder/...": leaf}`, in the tree's order."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def like(abstract: PyTree, tree: PyTree) -> PyTree | None:
    """Return the arrays of `tree` in the structure of `abstract`.

    The result is None if names, shapes or dtypes differ.
    """
    names = describe_shapes(abstract)
    if names != describe_shapes(tree):
        return None
    leaves = named_leaves(tree)
    return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[name] for name in names])


def differences(expected: dict[str, str], given: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Iterate over the differences between two results of `describe_shapes`.

    Yields:
      `(name, expected, given)`, with "absent" for a missing array.
    """
    for name in sorted(expected.keys() | given.keys()):
        ours, theirs = expected.get(name, "absent"), given.get(name, "absent")
        if ours != theirs:
            yield name, ours, theirs


def shapes_of(described: dict[str, str]) -> dict[str, str]:
    """Convert a result of `describe` to the result of `describe_shapes`."""
    return {name: text.rpartition(" ")[0] for name, text in described.items()}


def require_same(expected: dict[str, str], described: dict[str, str], where: Any):
    """Raise CheckpointError with the array's name if names, shapes or dtypes differ."""
    for name, ours, theirs in differences(expected, shapes_of(described)):
        raise CheckpointError(f" does not match this configuration: {name} is {theirs} there, {ours} here", path=where)


def require_checksums(tree: PyTree, described: dict[str, str], where: Any):
    """Raise CheckpointError if an array does not match its described checksum."""
    wrong = [name for name, value in checksums(tree).items() if described[name].rpartition(" ")[2] != value]
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise CheckpointError(f" is damaged: {wrong[0]}{more} does not match its checksum", path=where)


def write_tree(directory: Path, tree: PyTree):
    """Write `tree` to a directory that does not exist yet.

    Raises:
      OSError: the tree cannot be written. Errors of the storage are converted to OSError.
    """
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            checkpointer.save(directory.absolute(), args=ocp.args.PyTreeSave(tree))
    except OSError:
        raise
    except Exception as error:  # Orbax and its storage raise exceptions of any type
        raise OSError(storage_reason(error)) from error
    # The marker contains this machine's path, which should not be shared with the tree.
    for marker in directory.rglob("commit_success.txt"):
        marker.unlink()


def read_like(directory: Path, abstract: PyTree, where: Any) -> PyTree:
    """Read a tree with the structure, shapes and dtypes of `abstract`.

    The arrays are put on this process's first device. This does not wait for other processes.

    Args:
      directory: a directory that Orbax's standard handler wrote.
      abstract: a dataclass of trees of shapes. A field that is None may be missing in the directory.
      where: path to name in errors.

    Raises:
      CheckpointError: the tree is missing or damaged.
    """
    sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract)
    try:
        with _reader(ocp.StandardCheckpointHandler) as checkpointer:
            there = _metadata(checkpointer, directory)
            # Orbax compares fields that are None too. Trees of older versions lack the newer ones.
            target = {name: part for name, part in vars(target).items() if part is not None or name in there}
            restored = checkpointer.restore(directory.absolute(), args=ocp.args.StandardRestore(target))
        leaves = named_leaves(restored)
        return jax.tree.unflatten(jax.tree.structure(abstract), [leaves[name] for name in named_leaves(abstract)])
    except Exception as error:  # Orbax and its storage raise exceptions of any type
        raise CheckpointError(" is damaged", path=where, detail=first_line(error)) from error


def read_tree(directory: Path, described: dict[str, str], where: Any, parts: tuple[str, ...] | None = None) -> dict:
    """Read a tree as nested dicts of numpy arrays, written on any devices.

    Args:
      directory: a directory that `write_tree` or Orbax's standard handler wrote.
      described: expected arrays, see `describe`; those outside of `parts` are ignored.
      where: path to name in errors.
      parts: top-level keys to read; None for all.

    Raises:
      CheckpointError: the tree is missing, damaged, or does not match its description.
    """
    try:
        with _reader(ocp.PyTreeCheckpointHandler) as checkpointer:
            tree = _metadata(checkpointer, directory)
            if parts is not None:
                tree = {part: tree[part] for part in parts}
            restore_args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            restored = checkpointer.restore(
                directory.absolute(),
                args=ocp.args.PyTreeRestore(item=tree, restore_args=restore_args, partial_restore=parts is not None),
            )
    except Exception as error:  # Orbax and its storage raise exceptions of any type
        raise CheckpointError(" is damaged", path=where, detail=first_line(error)) from error
    wanted = {name: array for name, array in described.items() if parts is None or name.partition("/")[0] in parts}
    for name, there, written in differences(describe_shapes(restored), shapes_of(wanted)):
        raise CheckpointError(f" is damaged: {name} is {there}, but was written as {written}", path=where)
    require_checksums(restored, wanted, where)
    return restored


def first_line(error: Exception) -> str:
    """Return another library's exception as one line, with its type."""
    text = str(error).strip().split("\n")[0]
    return f"{type(error).__name__}: {text}"[:300]


def storage_reason(error: Exception) -> str:
    """Return why storage failed, in one line.

    This is the operating system's message, if there is one.
    """
    while error is not None:
        text = str(error)
        for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.ENOENT):
            if getattr(error, "errno", None) == number or os.strerror(number) in text:
                return getattr(error, "strerror", None) or os.strerror(number)
        last, error = error, error.__cause__ or error.__context__
    return first_line(last)


def _metadata(checkpointer, directory):
    metadata = checkpointer.metadata(directory.absolute()).item_metadata
    if metadata is None:
        raise FileNotFoundError("its description is missing or cannot be read")
    return metadata.tree


def _reader(handler):
    """Return a checkpointer for this process only, so that others never wait for it."""
    me = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=me, active_processes={me}, barrier_sync_key_prefix=f"process {me}"
    )
    return ocp.Checkpointer(handler(multiprocessing_options=alone), multiprocessing_options=alone)
