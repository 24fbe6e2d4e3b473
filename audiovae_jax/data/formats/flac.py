"""FLAC: streams whose header does not give their length."""

import io
from typing import BinaryIO

from audiovae_jax.data.formats.reader import read_at

_TOTAL = 21  # offset of the byte whose low half begins the number of samples, of 36 bits


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
