"""Reads the two container formats of `torch.save`.

These are a zip of storages, and an older stream.
"""

import io
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from audiovae_jax.torch_io.files import builders, tensors
from audiovae_jax.torch_io.files.unpickle import Refused, unpickle

_MAX_PICKLE = 64 << 20  # bytes; models of 40 million parameters take about 0.15 MB
_MAX_MEMBERS = 200_000
_MAX_DIRECTORY = 16 << 20  # bytes; about 60 per member
_END_RECORDS = 66_000  # bytes; a comment may follow the records
_UTF8, _DATA_DESCRIPTOR = 0x800, 0x8
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_STREAM_MAGIC = 0x1950A86A20F9469CFC6C
_STREAM_VERSION = 1001


def read_archive(path: Path, wanted: Callable[[str], bool]) -> dict:
    """Read the dict in a torch file.

    Args:
      path: a file of either format.
      wanted: returns whether to read a top-level key. Storages of the others are skipped.

    Raises:
      Refused: the file is damaged, hostile, or not of these formats.
      OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        magic = file.read(4)
        if magic == b"PK\x03\x04":
            value, read = _open_zip(file, size)
        elif magic[:1] == b"\x80":
            value, read = _open_stream(file, size)
        else:
            raise Refused("it is neither a torch file nor safetensors")
        if not isinstance(value, dict):
            raise Refused(f"it contains {_describe(value)}, not a dict; save the model's state_dict()")
        value = {key: item for key, item in value.items() if not isinstance(key, str) or wanted(key)}
        return _arrays(value, read)


def _describe(value):
    return repr(value) if type(value).__module__ != "builtins" else f"a {type(value).__name__}"


def _arrays(value, read):
    """Replace tensors by arrays, after checking that all of them fit."""
    found = []
    builders.plain(value, found.append)
    storages = {tensor.storage.key: tensor.storage for tensor in found}
    tensors.check_expansion(found, sum(storage.nbytes for storage in storages.values()))
    data = {}

    def array(tensor):
        key = tensor.storage.key
        if key not in data:
            data[key] = read(tensor.storage)
        return tensor.array(data[key])

    return builders.plain(value, array)


# Zip


def _open_zip(file, size):
    _check_directory(file, size)
    try:
        archive = zipfile.ZipFile(file)
        members = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error, EOFError) as error:
        raise Refused(f"its directory is damaged ({error})") from error
    if len(members) > _MAX_MEMBERS:
        raise Refused(f"it has {len(members):,} members")
    if sum(member.file_size for member in members) > size:
        raise Refused("its members claim to be larger than the file")
    by_name = {member.filename: member for member in members}
    if len(by_name) != len(members):
        raise Refused("two of its members have the same name")
    roots = [name.removesuffix("data.pkl") for name in by_name if name.rpartition("/")[2] == "data.pkl"]
    if len(roots) != 1:
        raise Refused("it is a zip file, but not one of torch's: it has no data.pkl")
    root = roots[0]
    if f"{root}constants.pkl" in by_name:
        raise Refused("it is a TorchScript archive, which is code; save the model's state_dict()")

    def member(name, nbytes=None):
        if root + name not in by_name:
            raise Refused(f"its member {name} is missing")
        return _read_member(file, by_name[root + name], nbytes)

    swap = False
    if f"{root}byteorder" in by_name:
        order = bytes(member("byteorder"))
        if order not in (b"little", b"big"):
            raise Refused("its byte order is unknown")
        swap = order.decode() != sys.byteorder
    value, _ = unpickle(memoryview(member("data.pkl")), builders.BUILDERS, builders.HASHING, tensors.storage)

    def read(storage):
        data = member(f"data/{storage.key}", storage.nbytes)
        return _swapped(data, storage.dtype) if swap else data

    return value, read


def _check_directory(file, size):
    """Raise Refused if the zip directory is too large to parse.

    Its size is taken from the records at the end of the file.
    """
    file.seek(max(0, size - _END_RECORDS))
    tail = file.read()
    for magic, form, offset in ((b"PK\x05\x06", "<I", 12), (b"PK\x06\x06", "<Q", 40)):
        position = tail.rfind(magic)
        field = tail[position + offset : position + offset + struct.calcsize(form)]
        if position < 0 or len(field) != struct.calcsize(form):
            continue
        (directory,) = struct.unpack(form, field)
        if directory > _MAX_DIRECTORY and directory != 0xFFFFFFFF:
            raise Refused(f"its directory of {directory:,} bytes is too large")


def _read_member(file, info, nbytes):
    """Read a member's bytes, and verify its header and CRC-32.

    Args:
      file: the archive.
      info: the member's directory entry.
      nbytes: expected size in bytes, or None.
    """
    name = info.filename
    if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
        raise Refused(f"its member {name} is compressed, which torch's never are")
    if info.flag_bits & ~(_UTF8 | _DATA_DESCRIPTOR):
        raise Refused(f"its member {name} has unknown flags")
    if name.endswith("data.pkl") and info.file_size > _MAX_PICKLE:
        raise Refused(f"its pickle of {info.file_size:,} bytes is too large")
    if nbytes is not None and info.file_size != nbytes:
        raise Refused(f"its member {name} has {info.file_size:,} bytes instead of {nbytes:,}")
    file.seek(info.header_offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) != _LOCAL_HEADER.size:
        raise Refused(f"its member {name} is cut short")
    magic, _, _, method, *_, name_length, extra_length = _LOCAL_HEADER.unpack(header)
    if magic != b"PK\x03\x04" or method != zipfile.ZIP_STORED or file.read(name_length) != name.encode():
        raise Refused(f"its member {name} has a damaged header")
    file.seek(extra_length, io.SEEK_CUR)
    data = np.empty(info.file_size, np.uint8)
    if file.readinto(data) != info.file_size:
        raise Refused(f"its member {name} is cut short")
    if zlib.crc32(data) != info.CRC:
        raise Refused(
            f"its member {name} does not match its CRC-32; it is damaged, or was saved with torch's CRC-32 off "
            "(torch.serialization.set_crc32_options)"
        )
    return data


# Stream


def _open_stream(file, size):
    """Read the pickles at the start, and locate the storages that follow.

    The pickles are magic number, version, system, value, and names of storages.
    """
    file.seek(0)
    data = memoryview(file.read(min(size, _MAX_PICKLE)))
    position = 0
    item_sizes = {}

    def persistent(parts):
        # Old files contain source code of modules. Only the class name is kept.
        if isinstance(parts, tuple) and len(parts) == 4 and parts[0] == "module":
            return parts[1]
        storage = tensors.storage(parts)
        if not isinstance(storage, tensors.Storage):
            raise Refused(f"it has a {storage}, whose size is unknown; save it again with a newer torch")
        if item_sizes.setdefault(storage.key, storage.dtype.itemsize) != storage.dtype.itemsize:
            raise Refused(f"its storage {storage.key} has two types")
        return storage

    def following():
        nonlocal position
        value, taken = unpickle(data[position:], builders.BUILDERS, builders.HASHING, persistent)
        position += taken
        return value

    if following() != _STREAM_MAGIC:
        raise Refused("it is a pickle, but not one of torch's")
    version = following()
    if version != _STREAM_VERSION:
        raise Refused(f"its format {version} is unknown")
    system = following()
    if not isinstance(system, dict) or not isinstance(system.get("little_endian"), bool):
        raise Refused("its byte order is unknown")
    swap = system["little_endian"] != (sys.byteorder == "little")
    value = following()
    keys = following()
    if not isinstance(keys, list) or not all(isinstance(key, (str, int)) for key in keys):
        raise Refused("its list of storages is damaged")
    keys = [str(key) for key in keys]
    if len(set(keys)) != len(keys):
        raise Refused("two of its storages have the same name")
    offsets = {}
    for key in keys:
        file.seek(position)
        header = file.read(8)
        if len(header) != 8:
            raise Refused("its storages are cut short")
        (count,) = struct.unpack("<q" if system["little_endian"] else ">q", header)
        if key not in item_sizes:
            raise Refused(f"its storage {key} belongs to no tensor")
        nbytes = count * item_sizes[key]
        if count < 0 or position + 8 + nbytes > size:
            raise Refused(f"its storage {key} is cut short")
        offsets[key] = (position + 8, nbytes)
        position += 8 + nbytes
    if position != size:
        raise Refused(f"{size - position} bytes follow its last storage")

    def read(storage):
        if storage.key not in offsets:
            raise Refused(f"its storage {storage.key} is missing")
        start, nbytes = offsets[storage.key]
        if storage.nbytes > nbytes:
            raise Refused(f"its storage {storage.key} has {nbytes:,} bytes instead of {storage.nbytes:,}")
        file.seek(start)
        data = np.empty(nbytes, np.uint8)
        if file.readinto(data) != nbytes:
            raise Refused(f"its storage {storage.key} is cut short")
        return _swapped(data, storage.dtype) if swap else data

    return value, read


def _swapped(data, dtype):
    item = dtype.itemsize // (2 if dtype.kind == "c" else 1)
    return data if item == 1 else data.view(f"u{item}").byteswap().view(np.uint8)
