"""Fills a parameter tree from a torch state dict, and reports every mismatch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.traverse_util
import numpy as np

from audiovae_jax.errors import CheckpointError
from audiovae_jax.torch_io import layout

PyTree = Any
# Prefixes that DistributedDataParallel and torch.compile add to keys.
_WRAPPERS = ("module", "_orig_mod", "_forward_module")
# The counter that torch's AveragedModel keeps next to the weights.
_COUNTER = "n_averaged"
# Types of ml_dtypes, whose numpy kind is not floating.
_EXOTIC_FLOATS = ("bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")
_MAX_KEYS_LISTED = 500  # keys of one kind in an error message, more than our networks have
_BLOCK = 64  # channels of a kernel that are transposed at once


@dataclasses.dataclass(frozen=True)
class Line:
    """The outcome of importing one tensor of a file.

    Attributes:
      key: its name in the file.
      shape: in the file.
      dtype: in the file.
      became: its path in our tree ("encoder/input_conv/v"), or None.
      note: how it was changed, or why it was left out.
    """

    key: str
    shape: tuple[int, ...]
    dtype: str
    became: str | None = None
    note: str = ""


@dataclasses.dataclass
class Filled:
    """A parameter tree from a file, with a report.

    Attributes:
      params: as jax arrays, float32.
      lines: one per tensor of the state dict, in its order.
      problems: `{kind: descriptions}` for the kinds "missing", "surplus" and "unusable".
    """

    params: PyTree
    lines: list[Line]
    problems: dict[str, list[str]]


def unwrapped(state_dict: dict[str, Any]) -> dict[str, np.ndarray]:
    """Remove the prefixes of DistributedDataParallel and torch.compile from keys.

    Raises:
      CheckpointError: a value is not a tensor, or two keys become the same.
    """
    plain = {}
    for key, tensor in state_dict.items():
        if key == _COUNTER:
            continue
        if not isinstance(key, str) or not isinstance(tensor, np.ndarray):
            raise CheckpointError(f"the state dict's {str(key)[:100]!r} is a {type(tensor).__name__}, not a tensor")
        name = ".".join(part for part in key.split(".") if part not in _WRAPPERS)
        if name in plain:
            raise CheckpointError(f"the state dict has {name!r} twice, with and without the prefix of a wrapper")
        plain[name] = tensor
    return plain


def fill(
    shapes: PyTree,
    state_dict: dict[str, np.ndarray],
    key_of: Callable[[tuple[str, ...]], str] = layout.torch_key,
    reason_to_leave_out: Callable[[str], str] = lambda key: "",
) -> Filled:
    """Fill the parameter tree of `shapes` from a state dict of numpy arrays.

    Weight-normalised convolutions may be stored as `weight_g` and `weight_v`, as `parametrizations.weight.original0`
    and `1`, or folded as `weight`. From a folded weight, the direction is the weight and the gain is its norm. The
    convolution is the same.

    Args:
      shapes: the tree to fill; leaves have a `shape`.
      state_dict: with torch's names and layout, unwrapped. Tensors are removed as they are used, so that only one copy
        of the weights is in memory.
      key_of: the key of a path in `shapes`.
      reason_to_leave_out: why the tensor of an unused key is left out. If it is empty, the tensor is surplus.

    Returns:
      The filled parameters. Others are absent from `params`, and `problems` lists why.
    """
    filled, lines = {}, []
    position = {key: i for i, key in enumerate(state_dict)}
    problems: dict[str, list[str]] = {"missing": [], "unusable": [], "surplus": []}
    folded = set()
    for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
        key, tensor = _find(key_of(path), path, state_dict)
        if tensor is None:
            problems["missing"].append(key)
            continue
        where = "/".join(path)
        described = {"key": key, "shape": tensor.shape, "dtype": str(tensor.dtype)}
        fault = fault_of(tensor)
        if path[-1] in ("g", "v") and key.endswith(".weight"):
            folded.add(key)
            tensor = unfolded(tensor, gain=path[-1] == "g")
        else:
            del state_dict[key]
        array = layout.from_torch(path, tensor, leaf.shape)
        if array is None:
            fault = f"has shape {described['shape']}, which does not fit {where} of shape {tuple(leaf.shape)}"
            if len(leaf.shape) != 4 and path[0] in ("encoder", "decoder"):
                fault = f"has shape {described['shape']}; here it is {layout.torch_shape(path, leaf.shape)}"
        if fault:
            problems["unusable"].append(f"{key} {fault}")
            lines.append(Line(**described, note=fault))
            continue
        note = "" if described["dtype"] == "float32" else f"{described['dtype']} -> float32"
        if key in folded:
            note = "; ".join(filter(None, (note, "folded: its norm" if path[-1] == "g" else "folded: unchanged")))
        filled[path] = _in_order(array)
        lines.append(Line(**described, became=where, note=note))
    for key in folded:
        del state_dict[key]
    for key, tensor in state_dict.items():
        reason = reason_to_leave_out(key)
        note = reason or "there is no parameter of that name here"
        lines.append(Line(key, tensor.shape, str(tensor.dtype), note=note))
        if not reason:
            problems["surplus"].append(key)
    lines.sort(key=lambda line: position[line.key])
    return Filled(flax.traverse_util.unflatten_dict(filled), lines, problems)


def explain(problems: dict[str, list[str]]) -> str:
    """Format the problems as lines; empty if there are none."""
    lines = []
    for kind, found in problems.items():
        more = [f"... and {len(found) - _MAX_KEYS_LISTED} more"] if len(found) > _MAX_KEYS_LISTED else []
        lines += [f"  {kind}: {what}" for what in found[:_MAX_KEYS_LISTED] + more]
    return "\n".join(lines)


def fault_of(tensor: np.ndarray) -> str:
    """Why a tensor cannot be a parameter: its dtype or its values.

    Returns:
      An empty string if it can.
    """
    if not is_floating(tensor):
        return f"has dtype {tensor.dtype}; it must be floating point"
    with np.errstate(over="ignore"):
        bad = tensor.size - np.count_nonzero(np.isfinite(np.asarray(tensor, np.float32)))
    return f"has {bad} NaN or infinite values" if bad else ""


def is_floating(tensor: np.ndarray) -> bool:
    """Whether a tensor's dtype is real floating point, of numpy or ml_dtypes."""
    return tensor.dtype.kind == "f" or tensor.dtype.name in _EXOTIC_FLOATS


def unfolded(weight: np.ndarray, gain: bool) -> np.ndarray:
    """The gain or direction whose weight norm gives `weight`.

    Args:
      weight: `[n, ...]`. The norm is over all axes but the first.
      gain: whether to return the gain `[n, 1, ...]` or the direction.
    """
    weight = np.asarray(weight, np.float32) if weight.dtype.kind != "c" else weight
    norm = np.sqrt(np.sum(np.square(weight, dtype=np.float64), axis=tuple(range(1, weight.ndim)), keepdims=True))
    if gain:
        return norm.astype(np.float32)
    # A zero weight may have any direction, but a zero direction has no norm to divide by.
    return np.where(norm > 0, weight, np.float32(1))


def _in_order(array):
    """Copy an array to float32 in C order. Kernels are copied in blocks that fit a cache, which is faster."""
    if array.ndim != 3:
        return np.ascontiguousarray(array, np.float32)
    copy = np.empty(array.shape, np.float32)
    for i in range(0, array.shape[1], _BLOCK):
        for j in range(0, array.shape[2], _BLOCK):
            copy[:, i : i + _BLOCK, j : j + _BLOCK] = array[:, i : i + _BLOCK, j : j + _BLOCK]
    return copy


def _find(key, path, state_dict):
    """Return `(key, tensor)` of the parameter at `path`.

    The key is the first of its possible names that exists.
    """
    names = [key, layout.parametrized_key(key)]
    if path[-1] in ("g", "v"):
        names.append(key.rpartition(".")[0] + ".weight")
    found = next((name for name in names if name in state_dict), key)
    return found, state_dict.get(found)
