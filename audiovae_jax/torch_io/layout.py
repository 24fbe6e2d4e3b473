"""How the torch system names and lays out what our parameter trees hold.

A parameter is a path in our tree and one tensor there; nothing is merged or split, so both
directions are a renaming and a transposition.

| ours | torch |
|---|---|
| `v: [taps, in, out]` | `weight_v: [out, in, taps]`, in the multi-period discriminator `[out, in, taps, 1]` |
| `v: [taps, in, out]` of a transposed convolution | `weight_v: [in, out, taps]` |
| `v: [rows, cols, in, out]` | `weight_v: [out, in, rows, cols]` |
| `g: [n]` | `weight_g: [n, 1, ...]` |
| `alpha: [C]` | `alpha: [1, C, 1]` |
"""

from typing import Any

import flax.traverse_util
import numpy as np

PyTree = Any

# Newer versions of torch's weight norm write these names.
_PARAMETRIZED = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
# Inside a block, torch's Sequential counts what we name.
_RESIDUAL = {"snake1": "block.0", "conv1": "block.1", "snake2": "block.2", "conv2": "block.3"}
_LEAVES = {"v": "weight_v", "g": "weight_g", "kernel": "weight", "bias": "bias", "alpha": "alpha"}


def torch_key(path: tuple[str, ...]) -> str:
    """The state-dict key of the parameter at `path`, e.g. `encoder.blocks.0.downsample.1.weight_v`."""
    *modules, leaf = path
    names = []
    for i, module in enumerate(modules):
        if module in _RESIDUAL and i and modules[i - 1].startswith("res_units_"):
            names.append(_RESIDUAL[module])
        elif module == "snake":
            names.append("downsample.0" if modules[0] == "encoder" else "upsample.0")
        elif module in ("downsample", "upsample"):
            names.append(f"{module}.1")
        elif module == "final_snake":
            names.append("final_conv.0")
        elif module == "final_conv" and modules[0] in ("encoder", "decoder"):
            names.append("final_conv.1")
        else:
            stem, _, number = module.rpartition("_")
            if not number.isdigit():
                names.append(module)
            elif modules[0].startswith("band_discriminators") and stem == "convs":
                names.append(f"convs.{number}.0")
            else:
                names.append(f"{stem}.{number}")
    return ".".join([*names, _LEAVES[leaf]])


def from_torch(path: tuple[str, ...], tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A torch tensor in our layout, for the parameter at `path` of `shape`.

    Raises:
      ValueError: the tensor does not fit.
    """
    array = tensor
    if path[-1] in ("v", "kernel"):
        if array.ndim == len(shape) + 1 and array.shape[-1] == 1:
            array = array[..., 0]
        axes = (2, 0, 1) if path[-2] == "upsample" else (*range(2, array.ndim), 1, 0)
        array = array.transpose(axes)
    elif array.size == array.shape[array.ndim > 1 and array.shape[0] == 1]:
        array = array.reshape(-1)
    if array.shape != tuple(shape):
        raise ValueError(f"{torch_key(path)} has shape {tensor.shape}, which does not fit {path} of shape {shape}")
    return array


def params_from_state_dict(state_dict: dict[str, np.ndarray], shapes: PyTree) -> PyTree:
    """The parameter tree of `shapes`, filled from a torch state dict of numpy arrays.

    Args:
      state_dict: torch's names and layout; either form of weight norm.
      shapes: the tree to fill, of anything with a `shape`.

    Raises:
      KeyError: a parameter is missing.
      ValueError: a tensor has another shape.
    """
    filled = {}
    for path, leaf in flax.traverse_util.flatten_dict(shapes).items():
        key = torch_key(path)
        if key not in state_dict:
            stem, _, name = key.rpartition(".")
            key = f"{stem}.{_PARAMETRIZED.get(name, name)}"
        filled[path] = from_torch(path, state_dict[key], leaf.shape)
    return flax.traverse_util.unflatten_dict(filled)
