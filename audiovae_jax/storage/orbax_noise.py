"""What Orbax and its storage say to nobody: whatever matters of it reaches the caller as an error, or as our own words.

Reading a folder that is not ours to write, or failing to write one array of hundreds, makes them log a line
or a traceback for each, from threads of their own.
"""

import logging
import sys
import traceback

_SOURCES = ("/orbax/", "/tensorstore/")


def silence():
    """Drop it, from here on and for this process; everything else that is logged stays."""
    for name in ("absl", "asyncio"):
        logger = logging.getLogger(name)
        if _is_of_others not in logger.filters:
            logger.addFilter(_is_of_others)
    if not isinstance(sys.unraisablehook, _Hook):
        sys.unraisablehook = _Hook(sys.unraisablehook)


def _is_of_others(record):
    """Whether a log record is kept: not from Orbax's code, nor of an array whose write failed."""
    if record.name == "absl":
        return not _is_theirs(record.pathname)
    text = record.getMessage()
    if record.exc_info and record.exc_info[1] is not None:
        text += "".join(traceback.format_tb(record.exc_info[1].__traceback__))
    return "exception was never retrieved" not in text or not (_is_theirs(text) or "OCDBT" in text or "zarr" in text)


class _Hook:
    """A `sys.unraisablehook` that drops what a read or write returns to when its event loop has gone."""

    def __init__(self, previous):
        self._previous = previous

    def __call__(self, unraisable):
        code = getattr(unraisable.object, "cr_code", None)
        if str(unraisable.exc_value) == "Event loop is closed" or (code and _is_theirs(code.co_filename)):
            return
        self._previous(unraisable)


def _is_theirs(path):
    return any(source in path.replace("\\", "/") for source in _SOURCES)
