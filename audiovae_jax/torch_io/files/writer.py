"""`write_checkpoint`: writes a file that `torch.load` reads, without torch.

The format is the zip of torch 1.6 and later, with pickle protocol 2. Storages are aligned as torch aligns them, so
`torch.load(mmap=True)` works too. The file contains only tensors and plain values, so `torch.load(weights_only=True)`,
the default, accepts it.
"""

import pickle
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audiovae_jax.storage import atomic
from audiovae_jax.torch_io.files import tensors

_MAX_PATH = 600  # characters of a location in the value
_ALIGNMENT = 64  # bytes
_PADDING_FIELD = b"FB"  # torch's id of a padding field


def write_checkpoint(path: str | Path, value: dict[str, Any]):
    """Write `value` as `torch.save` would.

    Args:
      path: written atomically.
      value: dicts, lists, tuples, strings, numbers, booleans, None, and numpy arrays, which become tensors. An array
        that occurs twice becomes two tensors of one storage.

    Raises:
      TypeError: it contains a value of another type. The message gives its location.
    """
    storages: list[np.ndarray] = []
    data = _Pickler(storages).dump(value)
    with atomic.replacing(Path(path)) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
        _add(archive, "data.pkl", data)
        _add(archive, "byteorder", sys.byteorder.encode())
        for i, array in enumerate(storages):
            _add(archive, f"data/{i}", np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        _add(archive, "version", b"3\n")


def _add(archive, name, data):
    info = zipfile.ZipInfo(f"archive/{name}")  # its date is fixed, so that equal contents give equal files
    start = archive.fp.tell() + 30 + len(info.filename) + 4
    padding = -start % _ALIGNMENT
    info.extra = _PADDING_FIELD + struct.pack("<H", padding) + bytes(padding)
    archive.writestr(info, data)


class _Pickler:
    def __init__(self, storages):
        self._out = bytearray(pickle.PROTO + b"\x02")
        self._storages, self._keys = storages, {}

    def dump(self, value):
        self._write(value, "")
        return bytes(self._out + pickle.STOP)

    def _write(self, value, where):
        if len(where) > _MAX_PATH:
            raise TypeError(f"{where[:60]}... is nested too deeply for a checkpoint, or contains itself")
        if isinstance(value, np.generic):
            value = value.item()
        for kind, write in _WRITERS.items():
            if isinstance(value, kind):
                write(self, value, where)
                return
        raise TypeError(f"{where or 'the value'} is a {type(value).__name__}, which a checkpoint cannot contain")

    def _sequence(self, value, where):
        self._out += pickle.EMPTY_LIST + pickle.MARK if isinstance(value, list) else pickle.MARK
        for i, item in enumerate(value):
            self._write(item, f"{where}[{i}]")
        self._out += pickle.APPENDS if isinstance(value, list) else pickle.TUPLE

    def _dict(self, value, where):
        self._out += pickle.EMPTY_DICT + pickle.MARK
        for key, item in value.items():
            self._write(key, f"a key of {where or 'the value'}")
            self._write(item, f"{where}.{key}" if where else str(key))
        self._out += pickle.SETITEMS

    def _integer(self, value, where):
        if -(2**31) <= value < 2**31:
            self._out += pickle.BININT + struct.pack("<i", value)
        else:
            data = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            if len(data) > 255:
                raise TypeError(f"{where} is an integer of {len(data)} bytes, which a checkpoint cannot contain")
            self._out += pickle.LONG1 + bytes([len(data)]) + data

    def _text(self, value, _):
        data = value.encode("utf-8", "surrogatepass")
        self._out += pickle.BINUNICODE + struct.pack("<I", len(data)) + data

    def _global(self, module, name):
        self._out += pickle.GLOBAL + f"{module}\n{name}\n".encode()

    def _tensor(self, value, where):
        storage = tensors.storage_name(value.dtype)
        if storage is None:
            raise TypeError(f"{where} has dtype {value.dtype}, for which torch has no storage")
        if id(value) not in self._keys:
            self._keys[id(value)] = len(self._storages)
            self._storages.append(value)
        strides = np.empty(value.shape, np.uint8).strides
        self._global("torch._utils", "_rebuild_tensor_v2")
        self._out += pickle.MARK + pickle.MARK
        self._text("storage", where)
        self._global("torch", storage)
        self._text(str(self._keys[id(value)]), where)
        self._text("cpu", where)
        self._integer(value.size, where)
        self._out += pickle.TUPLE + pickle.BINPERSID
        for part in (0, value.shape, strides, False):
            self._write(part, where)
        self._global("collections", "OrderedDict")
        self._out += pickle.EMPTY_TUPLE + pickle.REDUCE + pickle.TUPLE + pickle.REDUCE


def _constant(opcodes: dict) -> Callable:
    def write(pickler, value, _):
        pickler._out += opcodes[value]

    return write


# The order matters, because a bool is an int.
_WRITERS = {
    dict: _Pickler._dict,
    (list, tuple): _Pickler._sequence,
    str: _Pickler._text,
    bool: _constant({True: pickle.NEWTRUE, False: pickle.NEWFALSE}),
    int: _Pickler._integer,
    float: lambda pickler, value, _: pickler._out.extend(pickle.BINFLOAT + struct.pack(">d", value)),
    type(None): _constant({None: pickle.NONE}),
    np.ndarray: _Pickler._tensor,
}
