"""WAV (RIFF, RF64, BW64): headers that libsndfile misreads."""

import io
import re
from typing import BinaryIO

from audiovae_jax.data.formats.reader import read_at

_NAME = re.compile(rb"[A-Za-z0-9][A-Za-z0-9 _]{3}")
_MAX_CHUNKS = 1000
_PIPED = range(0x7FFFF000, 0x80000000)  # data sizes that programs write for data of unknown size; others are 0 and -1
_UNCLOSED = 8  # a RIFF size; with it and a data size of 0, libsndfile reads up to the end of the file


def repair(file: BinaryIO, begin: int = 0) -> list | None:
    """Return pieces of a WAV file that libsndfile reads in full.

    The result is None if libsndfile reads the file itself in full. See `reader.Pieces`.

    - A data chunk of unknown size extends to the end of the file, unless other chunks follow it.
    - A chunk of odd size without the byte that pads it gets one.
    - BW64 is named RF64, which has the same chunks.

    Args:
      file: a WAV file.
      begin: offset of its first byte.
    """
    end = file.seek(0, io.SEEK_END)
    name = read_at(file, begin, 4)
    is_64, size_64, offset, edits = name != b"RIFF", 0, begin + 12, []  # edits: offset, bytes replaced, new bytes
    if name == b"BW64":
        edits.append((begin, 4, b"RF64"))
    for _ in range(_MAX_CHUNKS):
        name, size = _chunk(file, offset)
        start = offset + 8
        if name is None:
            return None
        if name == b"ds64":
            size_64 = int.from_bytes(read_at(file, start + 8, 8), "little")
        if name == b"data":
            stated = size_64 if is_64 and size == 0xFFFFFFFF else size
            is_unknown = stated in (0, 0xFFFFFFFF) or stated in _PIPED
            if is_unknown and start + stated < end and not _is_chunks(file, start + stated, end):
                edits = [edit for edit in edits if edit[0] != begin]
                edits.insert(0, (begin, 8, b"RIFF" + _UNCLOSED.to_bytes(4, "little")))
                edits.append((offset + 4, 4, bytes(4)))
            break
        offset = start + size
        if size % 2 and _is_unpadded(file, offset):
            edits.append((offset, 0, b"\0"))
        else:
            offset += size % 2
    return _pieces(edits, begin, end) if edits else None


def _pieces(edits, begin, end):
    pieces, done = [], begin  # without what precedes the file, such as an ID3 tag
    for offset, replaced, data in edits:
        pieces += [[done, offset - done], data.hex()]
        done = offset + replaced
    return [piece for piece in [*pieces, [done, end - done]] if piece[1:] != [0]]


def _chunk(file, offset):
    """Return name and size of a chunk, or None and 0 if there is none."""
    header = read_at(file, offset, 8)
    if len(header) < 8 or not _NAME.match(header):
        return None, 0
    return header[:4], int.from_bytes(header[4:], "little")


def _is_chunks(file, offset, end):
    """Return whether the bytes from an offset to the end are chunks."""
    for _ in range(_MAX_CHUNKS):
        name, size = _chunk(file, offset)
        if name is None:
            return False
        offset += 8 + size
        if offset in (end, end - size % 2):
            return True
        offset += size % 2
    return False


def _is_unpadded(file, offset):
    """Return whether a chunk begins where a byte of padding is expected."""
    return _chunk(file, offset)[0] is not None and _chunk(file, offset + 1)[0] not in (b"data", b"fmt ")
