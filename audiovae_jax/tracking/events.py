"""TensorBoard events, written at once: on disk when they are said to be, and no more when the disk is full."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2

from audiovae_jax.tracking.writer import Writer


class Events(Writer):
    """An event file of a workdir.

    tensorboardX's own writer hands events to a thread; where that ends, on a full disk, its queue
    blocks for ever.

    Args:
      workdir: where the file goes.
      first_step: events from there on of files before this one are hidden.
      warn: is told once if nothing more can be written.
    """

    def __init__(self, workdir: Path, first_step: int, warn: Callable[[str], None]):
        self._warn = warn
        self._writer: EventsWriter | None = None
        try:
            # With the process, since two that begin in one second would have one name.
            self._writer = EventsWriter(str(workdir / "events"), f".{os.getpid()}")
        except OSError as error:
            self._give_up(error)
        self._write(
            event_pb2.Event(step=first_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        )

    def scalars(self, values: dict[str, float], step: int):
        """Record numbers."""
        for name, value in values.items():
            self._write(event_pb2.Event(step=step, summary=summary.scalar(name, value)))

    def audio(self, name: str, audio: np.ndarray, step: int, sample_rate: int):
        """Record `[T, C]` audio in -1..1."""
        self._write(event_pb2.Event(step=step, summary=summary.audio(name, audio, sample_rate)))

    def image(self, name: str, image: np.ndarray, step: int):
        """Record a picture, `[height, width, 3]` uint8."""
        self._write(event_pb2.Event(step=step, summary=summary.image(name, image, dataformats="HWC")))

    def flush(self):
        """Put what was recorded on disk."""
        self._attempt(lambda: self._writer.flush())

    def close(self, finished: bool = False):
        """Flush, and let go."""
        self._attempt(lambda: self._writer.close())
        self._writer = None

    def _write(self, event):
        event.wall_time = time.time()
        self._attempt(lambda: self._writer.write_event(event))

    def _attempt(self, action):
        if self._writer is None:
            return
        try:
            action()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error):
        self._writer = None
        self._warn(f"warning: TensorBoard events are no longer written: {error.strerror or error}")
