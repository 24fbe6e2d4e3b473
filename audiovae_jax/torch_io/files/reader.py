"""`read_checkpoint`: reads a torch or safetensors file without executing it."""

import zlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors

from audiovae_jax.errors import CheckpointError
from audiovae_jax.torch_io.files import archive
from audiovae_jax.torch_io.files.unpickle import Refused

# The key of a safetensors file's own metadata.
METADATA = "__metadata__"
# Types that safetensors does not read with numpy.
_BEYOND_NUMPY = {
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
}


def read_checkpoint(path: str | Path, *, skip: Collection[str] = ()) -> dict[str, Any]:
    """Read a `.pt`, `.pth`, `.ckpt` or `.safetensors` file.

    Nothing in the file is imported, called or executed. A table of known builders interprets the pickle inside. Sizes
    and CRC-32 are checked. (Torch's older, non-zip format has no checksums.) Unknown objects become inert
    `unpickle.Placeholder`s.

    Args:
      path: the file. Its format is detected from its contents.
      skip: top-level keys to leave out, such as `("optimizer_states",)`. Their storages are not read.

    Returns:
      A dict of the file's contents.

      - Tensors are numpy arrays in torch's layout, of ml_dtypes' types for bfloat16 and float8. Tensors that shared a
        storage still share it.
      - omegaconf's containers are lists and dicts.
      - Everything else is a plain Python value.
      - Metadata of a safetensors file, if any, is under `"__metadata__"`.

    Raises:
      CheckpointError: the file is missing, damaged, hostile, or not of these formats.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(9)
        if start == b"version h":
            raise Refused("it is a Git LFS pointer; download the file that it points to")
        if start[8:9] == b"{":
            return _read_safetensors(path, skip)
        return archive.read_archive(path, lambda key: key not in skip)
    except FileNotFoundError:
        raise CheckpointError(": there is no such file", path=path) from None
    except OSError as error:
        raise CheckpointError(f": {error.strerror or error}", path=path) from error
    except Refused as error:
        raise CheckpointError(f" cannot be read as a checkpoint: {error}", path=path) from error
    except Exception as error:  # errors that the checks above missed
        what = f"{type(error).__name__}: {error}"[:200]
        raise CheckpointError(f" cannot be read as a checkpoint: {what}", path=path) from error


def crc32(array: np.ndarray) -> int:
    """The CRC-32 of an array's contents."""
    return zlib.crc32(np.ascontiguousarray(array).reshape(-1).view(np.uint8))


def _read_safetensors(path, skip):
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            dtypes = {key: file.get_slice(key).get_dtype() for key in file.keys() if key not in skip}  # noqa: SIM118
            arrays = {key: file.get_tensor(key) for key, dtype in dtypes.items() if dtype not in _BEYOND_NUMPY}
            metadata = file.metadata()
        if len(arrays) < len(dtypes):
            for key, tensor in safetensors.deserialize(path.read_bytes()):
                if dtypes.get(key) in _BEYOND_NUMPY:
                    flat = np.frombuffer(tensor["data"], _BEYOND_NUMPY[dtypes[key]])
                    arrays[key] = flat.reshape(tensor["shape"])
    except safetensors.SafetensorError as error:
        raise Refused(f"its safetensors header or data is damaged ({error})") from error
    return {**arrays, METADATA: dict(metadata)} if metadata else arrays
