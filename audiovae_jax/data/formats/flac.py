"""FLAC: streams whose header does not give their length, and the channel mask, which libsndfile does not read."""

import io
import re
from typing import BinaryIO

from audiovae_jax.data.formats.reader import read_at

_TOTAL = 21  # offset of the byte whose low half begins the number of samples, of 36 bits
_COMMENT = 4  # type of the metadata block with tags
_LAST = 0x80  # set in the type of the last metadata block
_MASK = re.compile(rb"WAVEFORMATEXTENSIBLE_CHANNEL_MASK=0x([0-9a-f]{1,8})", re.IGNORECASE)


def with_length(file: BinaryIO, frames: int, begin: int = 0) -> list:
    """Return pieces of a file whose header states its length.

    Decoders can seek in such a file. See `reader.Pieces`.

    Args:
      file: a FLAC file.
      frames: its samples per channel.
      begin: offset of its first byte.
    """
    at = begin + _TOTAL
    high = read_at(file, at, 1)[0] & 0xF0 | frames >> 32
    end = file.seek(0, io.SEEK_END)
    return [[0, at], (bytes([high]) + (frames & 0xFFFFFFFF).to_bytes(4)).hex(), [at + 5, end - at - 5]]


def channel_mask(file: BinaryIO, begin: int = 0) -> int | None:
    """Return the channel mask that a file's tags give (RFC 9639, section 8.6.2), or None.

    The bits are those of a WAVE file.

    Args:
      file: a FLAC file.
      begin: offset of its first byte.
    """
    kind, offset = 0, begin + 4
    while not kind & _LAST:
        header = read_at(file, offset, 4)
        if len(header) < 4:
            break
        kind, size = header[0], int.from_bytes(header[1:])
        if kind & ~_LAST == _COMMENT:
            found = _MASK.search(read_at(file, offset + 4, size))
            return int(found[1], 16) if found else None
        offset += 4 + size
    return None
