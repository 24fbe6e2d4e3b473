"""Readers of bytes other than local files."""

import bisect
import io
import itertools
import os
from collections.abc import Sequence
from typing import BinaryIO


def read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    """Return `count` bytes at an offset, or fewer at the end of the file.

    A single read of the file may return less.
    """
    file.seek(offset)
    parts = []
    while count > 0 and (part := file.read(count)):
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


class Reader(io.RawIOBase):
    """A seekable reader of `size` bytes.

    Subclasses implement `readinto`, which reads at `self._position` and advances it.
    """

    def __init__(self, size: int):
        self._size, self._position = size, 0

    def readable(self):
        return True

    def seekable(self):
        return True

    def tell(self):
        return self._position

    def seek(self, offset, whence=os.SEEK_SET):
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position


class Pieces(Reader):
    """A reader of pieces of another reader, one after another.

    Args:
      file: the other reader, which stays open.
      pieces: each `[offset, size]` in bytes, or bytes that are not in the file, in hexadecimal.
    """

    def __init__(self, file: BinaryIO, pieces: Sequence[list[int] | str]):
        self._file = file
        self._pieces = [bytes.fromhex(piece) if isinstance(piece, str) else piece for piece in pieces]
        sizes = [len(piece) if isinstance(piece, bytes) else piece[1] for piece in self._pieces]
        self._ends = list(itertools.accumulate(sizes))
        super().__init__(self._ends[-1])

    def expect(self, size: int):
        """Set the number of bytes to fetch at once in the next reads."""
        getattr(self._file, "expect", lambda size: None)(size)

    def readinto(self, buffer):
        view = memoryview(buffer).cast("B")
        done = 0
        while done < len(view) and self._position < self._size:
            count = self._read_piece(view[done:])
            if count == 0:
                break
            done += count
            self._position += count
        return done

    def _read_piece(self, view):
        index = bisect.bisect_right(self._ends, self._position)
        piece, view = self._pieces[index], view[: self._ends[index] - self._position]
        at = self._position - (self._ends[index - 1] if index else 0)
        if isinstance(piece, bytes):
            view[:] = piece[at : at + len(view)]
            return len(view)
        self._file.seek(piece[0] + at)
        return self._file.readinto(view)
