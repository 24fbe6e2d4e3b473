"""Opening files with libsndfile from several threads."""

import io
import os
import threading
from pathlib import Path
from typing import BinaryIO

import soundfile

_MAX_OPENINGS = 8
_BLOCK = 1 << 16  # samples decoded at a time


def open_sound(file: Path | BinaryIO, mode: str = "r", **options) -> soundfile.SoundFile:
    """Open a `soundfile.SoundFile`, by a path or from a seekable reader.

    Names need not be UTF-8. A file that hangs does not block the opening of others.
    """
    if isinstance(file, Path):
        name = file if os.name == "nt" else os.fsencode(file)
        return _retried(lambda: _Sound(name, mode, **options), mode == "r")
    return _retried(lambda: file.seek(0) or _Sound(file, mode, **options), mode == "r")


def skip(file: soundfile.SoundFile, count: int) -> int:
    """Decode up to `count` samples and discard them, and return their number."""
    skipped = 0
    while skipped < count:
        block = file.read(min(_BLOCK, count - skipped), dtype="float32")
        if len(block) == 0:
            break
        skipped += len(block)
    return skipped


class _Sound(soundfile.SoundFile):
    """A `SoundFile` that opens without soundfile's global lock.

    soundfile holds this lock while it opens a file, to protect libsndfile's global error number. A file that hangs
    would block all others, and a remote file would delay them.
    """

    def __init__(self, *args, **options):
        self._sf_error_lock = threading.Lock()
        super().__init__(*args, **options)

    def seek(self, frames, whence=io.SEEK_SET):
        # After each read, soundfile seeks to where it is. That costs time, and fails at the end of some files.
        if whence == io.SEEK_SET and frames and frames == self.tell():
            return frames
        return super().seek(frames, whence)


def _retried(opening, is_read):
    """Return `opening()`, retried until it fails twice in a row with the same error.

    Without the global lock, the first error may be another thread's. Writers are not retried.
    """
    previous = None
    for _ in range(_MAX_OPENINGS if is_read else 1):
        try:
            return opening()
        except soundfile.LibsndfileError as error:
            if error.code and error.code == previous:
                raise
            previous, last = error.code, error
    raise last
