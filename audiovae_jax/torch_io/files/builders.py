"""Builders for the globals in torch files, and conversion to plain Python values."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import numpy as np

from audiovae_jax.torch_io.files import tensors
from audiovae_jax.torch_io.files.unpickle import Global, Placeholder, Refused, Reserved

_MAX_DEPTH = 100
_MAX_VALUES = 4_000_000
_NUMBER = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16)")


class _DType(Reserved):
    """A pickled `numpy.dtype`, whose byte order arrives as its state.

    `value` is None if the dtype is not numeric.
    """

    def __init__(self, code):
        self.value = np.dtype(code) if isinstance(code, str) and _NUMBER.fullmatch(code) else None

    def set_state(self, state):
        if not isinstance(state, tuple) or len(state) < 2 or state[1] not in ("<", ">", "|", "="):
            raise Refused("a dtype has no byte order")
        if self.value is not None:
            self.value = self.value.newbyteorder(state[1])


class _Array(Reserved):
    """A pickled `numpy.ndarray`, whose contents arrive as its state.

    `value` is None if the dtype is not numeric.
    """

    def __init__(self, *_):
        self.value = None

    def set_state(self, state):
        if not isinstance(state, tuple) or len(state) != 5:
            raise Refused("an array has no contents")
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(shape, tuple):
            raise Refused("an array has no contents")
        if dtype.value is None:
            return
        if not isinstance(data, bytes):
            raise Refused("an array has no contents")
        flat = np.frombuffer(data, dtype.value).astype(dtype.value.newbyteorder("="))
        self.value = flat.reshape(shape, order="F" if fortran else "C")


def _array_of_buffer(data, dtype, shape, order, *_):
    # Protocol 5 pickles arrays like this.
    array = _Array()
    array.set_state((1, shape, dtype, order == "F", bytes(data) if isinstance(data, bytearray) else data))
    return array


def _scalar(dtype, data):
    if not isinstance(dtype, _DType):
        raise Refused("a numpy scalar has no dtype")
    if dtype.value is None:
        return Placeholder(Global("numpy", "generic"), ())
    if not isinstance(data, bytes) or len(data) != dtype.value.itemsize:
        raise Refused("a numpy scalar has no contents")
    return np.frombuffer(data, dtype.value)[0].item()


def _bytes(*args):
    # Protocol 2 pickles empty bytes like this.
    if args:
        raise Refused("bytes have unexpected arguments")
    return b""


def _encode(text, encoding="latin1"):
    # Protocol 2 pickles bytes like this.
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise Refused("bytes are encoded in an unknown way")
    return text.encode("latin-1")


def _bytearray(data=b""):
    if not isinstance(data, (bytes, bytearray)):  # a number would be a size to allocate
        raise Refused("a bytearray is not made of bytes")
    return bytearray(data)


def _mapping(check_key, *args):
    entries = args[-1] if args else {}
    if isinstance(entries, (Global, Placeholder)) or entries is None:  # a defaultdict's factory
        entries = {}
    pairs = list(entries.items()) if isinstance(entries, dict) else entries
    if not isinstance(pairs, (list, tuple)) or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs):
        raise Refused("a dict is not made of pairs")
    return {check_key(key): value for key, value in pairs}


def _table(kind):
    def build(check_key, values=()):
        return kind(check_key(value) for value in _values(values, kind))

    return build


def _sequence(kind):
    def build(values=()):
        return kind(_values(values, kind))

    return build


def _values(values, kind):
    if not isinstance(values, (list, tuple, set, frozenset)):
        raise Refused(f"a {kind.__name__} is not made of values")
    return values


def _complex(real=0.0, imag=0.0):
    if not all(isinstance(part, (int, float)) for part in (real, imag)):
        raise Refused("a complex number is not made of numbers")
    return complex(real, imag)


def _device(name="cpu", index=None):
    if not isinstance(name, str):
        raise Refused("a device has no name")
    return name if index is None else f"{name}:{index}"


def _typed_tensor(function, _, args, *__):
    # A tensor subclass, or a tensor with attributes.
    builder = BUILDERS.get((function.module, function.name)) if isinstance(function, Global) else None
    if builder not in _TENSOR_BUILDERS or not isinstance(args, tuple):
        raise Refused(f"a tensor is made by {function}")
    return builder(*args)


_SET, _FROZENSET = _table(set), _table(frozenset)
# Builders that hash their arguments; see `unpickle`.
HASHING = frozenset({_mapping, _SET, _FROZENSET})
_TENSOR_BUILDERS = (tensors.rebuild_tensor, tensors.rebuild_tensor_v3, tensors.rebuild_parameter)
BUILDERS: dict[tuple[str, str], Callable] = {
    ("torch._utils", "_rebuild_tensor"): tensors.rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v2"): tensors.rebuild_tensor,
    ("torch._utils", "_rebuild_tensor_v3"): tensors.rebuild_tensor_v3,
    ("torch._utils", "_rebuild_parameter"): tensors.rebuild_parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): tensors.rebuild_parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _typed_tensor,
    ("torch", "Size"): _sequence(tuple),
    ("torch", "device"): _device,
    ("collections", "OrderedDict"): _mapping,
    ("collections", "defaultdict"): _mapping,
    ("lightning_fabric.utilities.data", "AttributeDict"): _mapping,
    ("lightning.fabric.utilities.data", "AttributeDict"): _mapping,
    ("pytorch_lightning.utilities.parsing", "AttributeDict"): _mapping,
    ("_codecs", "encode"): _encode,
    ("numpy", "dtype"): lambda code, *_: _DType(code),
}
for _module in ("builtins", "__builtin__"):
    BUILDERS |= {
        (_module, "dict"): _mapping,
        (_module, "list"): _sequence(list),
        (_module, "tuple"): _sequence(tuple),
        (_module, "set"): _SET,
        (_module, "frozenset"): _FROZENSET,
        (_module, "bytes"): _bytes,
        (_module, "bytearray"): _bytearray,
        (_module, "complex"): _complex,
    }
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    BUILDERS |= {(_module, "scalar"): _scalar, (_module, "_reconstruct"): _Array}
for _module in ("numpy.core.numeric", "numpy._core.numeric"):
    BUILDERS[_module, "_frombuffer"] = _array_of_buffer


@dataclasses.dataclass
class _Plainer:
    array: Callable[[tensors.Tensor], np.ndarray]
    values: int = 0

    def __post_init__(self):
        # Keyed by id, which is unique while the caller keeps the whole value alive.
        self._done, self._open = {}, set()

    def __call__(self, value, depth=0):
        if isinstance(value, tensors.Tensor):
            return self.array(value)
        if isinstance(value, (_Array, _DType)):
            return Placeholder(Global("numpy", "ndarray"), ()) if value.value is None else value.value
        if isinstance(value, Placeholder):
            content = _omegaconf_content(value)
            if content is value:
                return value
            return self(content, depth + 1)
        if isinstance(value, tensors.Storage):
            raise Refused("it contains a storage that belongs to no tensor")
        if not isinstance(value, (dict, list, tuple)):
            return value
        if id(value) in self._done:
            result, size = self._done[id(value)]
            self._count(size)
            return result
        if id(value) in self._open or depth > _MAX_DEPTH:
            raise Refused(f"a value contains itself, or is nested deeper than {_MAX_DEPTH}")
        before = self.values
        self._count(1 + len(value))
        self._open.add(id(value))
        if isinstance(value, dict):
            result = {key: self(item, depth + 1) for key, item in value.items()}
        else:
            result = type(value)(self(item, depth + 1) for item in value)
        self._open.discard(id(value))
        self._done[id(value)] = (result, self.values - before)
        return result

    def _count(self, size):
        # A shared value counts at each use, because code that walks the result visits it each time.
        self.values += size
        if self.values > _MAX_VALUES:
            raise Refused(f"it expands to more than {_MAX_VALUES:,} values")


def plain(value: Any, array: Callable[[tensors.Tensor], np.ndarray]) -> Any:
    """Convert tensors to arrays, and omegaconf's containers to lists and dicts.

    Args:
      value: from `unpickle`. Placeholders of unknown classes are kept as they are.
      array: returns a tensor's array.

    Raises:
      Refused: the value contains itself, or is too deep or too large when expanded.
    """
    return _Plainer(array)(value)


def _omegaconf_content(value):
    """The content of an omegaconf container or node; other values unchanged."""
    name = value.function
    if name == Global("copyreg", "_reconstructor") and value.args:
        name = value.args[0]
    if not isinstance(name, Global) or name.module.partition(".")[0] != "omegaconf":
        return value
    state = value.state
    if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
        state = state[0]
    if not isinstance(state, dict):
        return value
    for key in ("_content", "_val"):
        if key in state:
            return state[key]
    return value
