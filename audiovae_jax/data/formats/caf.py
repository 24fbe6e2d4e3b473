"""CAF: files whose header does not give the size of their data."""

import io
from typing import BinaryIO

from audiovae_jax.data.formats.reader import read_at

_MAX_CHUNKS = 1000


def repair(file: BinaryIO) -> list | None:
    """Return pieces of a file that state the size of its data.

    The result is None if the file states it. See `reader.Pieces`.
    """
    end, offset = file.seek(0, io.SEEK_END), 8
    for _ in range(_MAX_CHUNKS):
        header = read_at(file, offset, 12)
        size = int.from_bytes(header[4:], signed=True)
        if header[:4] == b"data" and size == -1:
            size_at = offset + 4
            rest = end - size_at - 8
            return [[0, size_at], rest.to_bytes(8).hex(), [size_at + 8, rest]]
        if len(header) < 12 or size < 0 or header[:4] == b"data":
            return None
        offset += 12 + size
    return None
