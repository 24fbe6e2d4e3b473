"""Names and layouts of the torch system's parameters.

A parameter is a path in our tree, and one tensor in torch's state dict. Nothing is merged or split: both directions
rename and transpose.

| ours | torch |
|---|---|
| `v: [taps, in, out]` | `weight_v: [out, in, taps]`, in the multi-period discriminator `[out, in, taps, 1]` |
| `v: [taps, in, out]` of a transposed convolution | `weight_v: [in, out, taps]` |
| `v: [rows, cols, in, out]` | `weight_v: [out, in, rows, cols]` |
| `g: [n]` | `weight_g: [n, 1, ...]` |
| `alpha: [C]`, `beta: [C]` | `alpha: [1, C, 1]`, `beta: [1, C, 1]`; in stable-audio-tools `[C]` |
"""

import numpy as np

# Newer versions of torch's weight norm write these names.
_PARAMETRIZED = {
    "weight_g": "parametrizations.weight.original0",
    "weight_v": "parametrizations.weight.original1",
}
# Torch's Sequential numbers the layers of a block that we name.
_RESIDUAL = {"snake1": "block.0", "conv1": "block.1", "snake2": "block.2", "conv2": "block.3"}
# Modules and parameters in the order in which the torch system registers them.
_ORDER = (
    *("latent_mean", "latent_std", "encoder", "decoder", "input_conv", "blocks"),
    *("upsample", "res_units", "downsample", "final_conv", "alpha", "bias", "weight_g", "weight_v"),
)
LEAVES = {"v": "weight_v", "g": "weight_g", "kernel": "weight", "bias": "bias", "alpha": "alpha", "beta": "beta"}
ACTIVATION = ("alpha", "beta")


def torch_key(path: tuple[str, ...]) -> str:
    """The state-dict key of a path, e.g. `encoder.blocks.0.downsample.1.weight_v`."""
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
    return ".".join([*names, LEAVES[leaf]])


def torch_shape(path: tuple[str, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in torch of the parameter at `path`; see `to_torch`."""
    return to_torch(path, np.broadcast_to(np.float32(0), shape)).shape


def to_torch(path: tuple[str, ...], array: np.ndarray) -> np.ndarray:
    """Our parameter at `path` in torch's layout; a view.

    Axes of size 1 that only torch has are missing: the last ones of the multi-period discriminator and of the gains of
    2-D convolutions.
    """
    if path[-1] in ("v", "kernel"):
        n = array.ndim
        return array.transpose((1, 2, 0) if path[-2] == "upsample" else (n - 1, n - 2, *range(n - 2)))
    if path[-1] == "bias":
        return array
    return array[None, :, None] if path[-1] in ACTIVATION else array[:, None, None]


def from_torch(path: tuple[str, ...], tensor: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """A torch tensor in our layout, for the parameter at `path` of `shape`.

    Returns:
      None if the tensor does not fit.
    """
    array = tensor
    if path[-1] in ("v", "kernel"):
        if array.ndim == len(shape) + 1 and array.shape[-1] == 1:
            array = array[..., 0]
        if array.ndim != len(shape):
            return None
        array = array.transpose((2, 0, 1) if path[-2] == "upsample" else (*range(2, array.ndim), 1, 0))
    elif path[-1] in ACTIVATION:
        array = array[0, :, 0] if array.ndim == 3 and array.shape[::2] == (1, 1) else array
    elif path[-1] == "g":
        array = array.reshape(-1) if array.ndim and array.size == array.shape[0] else array
    return array if array.shape == tuple(shape) else None


def parametrized_key(key: str) -> str:
    """The name that newer versions of torch's weight norm give to `key`."""
    stem, dot, name = key.rpartition(".")
    return f"{stem}{dot}{_PARAMETRIZED.get(name, name)}"


def is_constant(key: str) -> bool:
    """Whether a key names a window or filterbank of torch's discriminators.

    Torch keeps these constants next to the weights.
    """
    return key.rpartition(".")[2] in ("window", "fb")


def reason_of_constant(key: str) -> str:
    """Why a constant is not imported; empty if the key names no constant."""
    return "a constant, computed here" if is_constant(key) else ""


def order(key: str) -> tuple:
    """Sort key that orders the model's keys as torch's `parameters()` does.

    Torch's optimizers number the parameters in this order.
    """
    return tuple(int(part) if part.isdigit() else _ORDER.index(part) for part in key.split(".") if part != "block")
