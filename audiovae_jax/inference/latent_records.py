"""Records of latents: a checksum, then a safetensors file.

A file holds a range of a track. The checksum is the CRC-32 of the file, four bytes in little endian. The file contains
`mean` and `logvar`, or `z`, each `[lanes, frames, latent_dim]`. They are in calibrated units, as `Latents.z` and the
input of `Codec.decode`. The metadata has one entry, `audiovae_latents`: JSON with `format`, `model` (the fingerprint),
`key` (the track) and `first_frame`.
"""

import json
import zlib

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from audiovae_jax.errors import DataError
from audiovae_jax.persistence.locate import LATENTS_KEY

# Arrays of a record, by the stored form of the posterior.
ARRAYS = {"posterior": ("mean", "logvar"), "samples": ("z",)}
DTYPES = {"float32": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
_FORMAT = 1
_NAMES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


def encode(arrays: dict[str, np.ndarray], dtype: str, *, model: str, key: str, first_frame: int) -> bytes:
    """Encode arrays to a record, including its checksum.

    Args:
      arrays: float32 `[lanes, frames, latent_dim]`, by name.
      dtype: one of `DTYPES`, the dtype of the stored arrays.
      model: fingerprint of the model.
      key: key of the track.
      first_frame: first frame of the arrays in the track.

    Raises:
      DataError: a value is not finite in `dtype`.
    """
    with np.errstate(over="ignore"):
        kept = {name: np.ascontiguousarray(array).astype(DTYPES[dtype]) for name, array in arrays.items()}
    if not all(np.isfinite(array.astype(np.float32)).all() for array in kept.values()):
        raise DataError(f"its latents contain values that are not finite in {dtype}")
    described = {"format": _FORMAT, "model": model, "key": key, "first_frame": first_frame}
    # One entry, since safetensors writes several in no fixed order.
    content = safetensors.numpy.save(kept, {LATENTS_KEY: json.dumps(described)})
    return zlib.crc32(content).to_bytes(4, "little") + content


def decode(content: bytes, *, model: str, key: str, first_frame: int) -> dict[str, np.ndarray]:
    """Decode a record to arrays, float32 `[lanes, frames, latent_dim]` by name.

    Args:
      content: the record without its checksum.
      model, key, first_frame: the expected values of the metadata.

    Raises:
      DataError: the record is damaged, or its metadata differs.
    """
    try:
        size = int.from_bytes(content[:8], "little")
        described = json.loads(json.loads(content[8 : 8 + size])["__metadata__"][LATENTS_KEY])
        arrays = {}
        for name, tensor in safetensors.deserialize(content):
            values = np.frombuffer(tensor["data"], DTYPES[_NAMES[tensor["dtype"]]])
            arrays[name] = values.reshape(tensor["shape"]).astype(np.float32)
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"a record is damaged ({type(error).__name__}: {error})") from error
    expected = {"format": _FORMAT, "model": model, "key": key, "first_frame": first_frame}
    if described != expected:
        raise DataError(f"a record belongs to {described}, not to {expected}")
    return arrays
