"""Torch's tensors as numpy arrays: views of storages, with every bound checked.

A tensor in a torch file is an offset, a shape and strides into a storage. Nothing is read or allocated before all
tensors of the file are known to fit.
"""

import dataclasses
import math

import ml_dtypes
import numpy as np

from audiovae_jax.torch_io.files.unpickle import Global, Placeholder, Refused

_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "Float8_e4m3fnStorage": "float8_e4m3fn",
    "Float8_e5m2Storage": "float8_e5m2",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
}
_MAX_DIMENSIONS = 32
# Tensors may share storages and repeat elements. These limit their total size relative to the file's.
_MAX_EXPANSION, _EXPANSION_FLOOR = 8, 64 << 20


@dataclasses.dataclass(frozen=True)
class Storage:
    """A storage of a file, not read yet.

    Attributes:
      key: its name in the file.
      dtype: of its elements; uint8 if untyped.
      size: in elements.
      offset: elements to skip, for the views of old files.
    """

    key: str
    dtype: np.dtype
    size: int
    offset: int = 0

    @property
    def nbytes(self) -> int:
        """Size in bytes, including the offset."""
        return (self.offset + self.size) * self.dtype.itemsize


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A view within a storage; offset and strides are in elements of `dtype`."""

    storage: Storage
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    conjugate: bool = False
    negative: bool = False

    @property
    def nbytes(self) -> int:
        """Size of a copy in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def array(self, data: np.ndarray) -> np.ndarray:
        """The tensor as an array.

        Args:
          data: the storage's bytes, in native byte order. The array is a view of them if possible.
        """
        item, boolean = self.dtype.itemsize, self.dtype == np.bool_
        kind = np.uint8 if boolean else self.dtype
        view = np.ndarray(self.shape, kind, data, self.offset * item, tuple(s * item for s in self.strides))
        if boolean:
            return np.asarray(view != 0)  # numpy's booleans must be 0 or 1
        if self.conjugate:
            view = np.asarray(np.conj(view))
        if self.negative:
            view = np.asarray(-view)
        # A write to a view with repeated elements would change several of them.
        return view.copy() if 0 in self.strides else view


def storage(parts: tuple) -> Storage | Placeholder:
    """The storage of a persistent id.

    The id is `("storage", type, key, location, size)`, followed by a view in old files.

    Returns:
      An inert `Placeholder` if the storage type is unknown.

    Raises:
      Refused: the id is not that of a storage.
    """
    if not isinstance(parts, tuple) or len(parts) not in (5, 6) or parts[0] != "storage":
        raise Refused("a persistent id is not that of a storage")
    _, kind, key, _, size, *view = parts
    if not isinstance(kind, Global) or kind.module not in ("torch", "torch.storage"):
        raise Refused(f"{kind} is not a storage type")
    if kind.name not in _STORAGES:  # quantised, or newer than this table
        return Placeholder(kind, ())
    if isinstance(key, int):
        key = str(key)
    if not isinstance(key, str) or not _is_count(size):
        raise Refused("a storage has no name or size")
    offset = 0
    if view and view[0] is not None:
        _, offset, size = _unpack(view[0], 3, "a view of a storage")
        if not (_is_count(offset) and _is_count(size)):
            raise Refused("a view of a storage has no size")
    return Storage(key, np.dtype(_DTYPES[_STORAGES[kind.name]]), size, offset)


def rebuild_tensor(source, offset, shape, strides, *rest, dtype=None) -> Tensor | Placeholder:
    """A `Tensor`, for torch's `_rebuild_tensor` and `_rebuild_tensor_v2`.

    Raises:
      Refused: the tensor lies outside its storage, or its parts are invalid.
    """
    if isinstance(source, Placeholder):
        return source
    if not isinstance(source, Storage):
        raise Refused("a tensor has no storage")
    dtype = source.dtype if dtype is None else dtype
    shape, strides = _counts(shape, "shape"), _counts(strides, "strides")
    if len(shape) != len(strides) or len(shape) > _MAX_DIMENSIONS or not _is_count(offset):
        raise Refused(f"a tensor has shape {shape} and strides {strides}")
    item = source.dtype.itemsize
    capacity = source.size * item // dtype.itemsize
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= capacity:
        raise Refused(f"a tensor of shape {shape} ends at element {last} of a storage of {capacity}")
    if not math.prod(shape):
        offset, strides = 0, (0,) * len(shape)
    if source.offset * item % dtype.itemsize:
        raise Refused("a view of a storage is not aligned")
    metadata = rest[2] if len(rest) > 2 else {}
    flags = metadata if isinstance(metadata, dict) else {}
    return Tensor(
        source,
        dtype,
        source.offset * item // dtype.itemsize + offset,
        shape,
        strides,
        conjugate=bool(flags.get("conj", False)),
        negative=bool(flags.get("neg", False)),
    )


def rebuild_tensor_v3(source, offset, shape, strides, requires_grad, hooks, dtype, *metadata) -> Tensor | Placeholder:
    """A `Tensor` of an untyped storage, for torch's `_rebuild_tensor_v3`."""
    if not isinstance(dtype, Global) or dtype.module != "torch":
        raise Refused(f"{dtype} is not a dtype")
    if dtype.name not in _DTYPES:
        return Placeholder(dtype, ())
    named = np.dtype(_DTYPES[dtype.name])
    return rebuild_tensor(source, offset, shape, strides, requires_grad, hooks, *metadata, dtype=named)


def rebuild_parameter(data, *_) -> Tensor | Placeholder:
    """A parameter's tensor, for torch's `_rebuild_parameter` and variants."""
    if not isinstance(data, (Tensor, Placeholder)):
        raise Refused("a parameter has no tensor")
    return data


def check_expansion(tensors: list[Tensor], stored: int):
    """Raise Refused if copies of `tensors` would be far larger than `stored` bytes."""
    total = sum(tensor.nbytes for tensor in tensors)
    if total > _MAX_EXPANSION * stored + _EXPANSION_FLOOR:
        raise Refused(f"{stored:,} bytes of storages claim to be {total:,} bytes of tensors")


def storage_name(dtype: np.dtype) -> str | None:
    """Torch's typed storage of `dtype`; None if it has none."""
    return next((s for s, d in _STORAGES.items() if np.dtype(_DTYPES[d]) == dtype and s != "UntypedStorage"), None)


def _counts(values, what):
    if not isinstance(values, tuple) or not all(_is_count(value) for value in values):
        raise Refused(f"the {what} of a tensor is {str(values)[:100]}")
    return values


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**48


def _unpack(values, count, what):
    if not isinstance(values, tuple) or len(values) != count:
        raise Refused(f"{what} does not have {count} parts")
    return values
