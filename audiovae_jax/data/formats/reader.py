"""The base class of readers of bytes other than local files."""

import io
import os


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
