"""TensorBoard events, written synchronously to disk or a bucket."""

import contextlib
import os
import struct
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2, summary_pb2

from audiovae_jax.run.tracking.writer import Writer
from audiovae_jax.storage.bucket_path import BucketPath

# Objects cannot be appended to. Each flush uploads the file again, and a file beyond this size, in bytes, is followed
# by a new one. TensorBoard reads them in order.
_LARGEST_OBJECT = 1 << 22
_PATIENCE = 10.0  # seconds that training waits for a bucket; the next flush retries
_AGAIN_AFTER = 60.0  # seconds from a failure until a new file is tried


class Events(Writer):
    """Writes event files to a workdir; events are dropped while writing fails.

    tensorboardX's own writer passes events to a thread. If a full disk ends that thread, its queue blocks forever.

    Args:
      workdir: folder of the files.
      first_step: earlier events from this step on are hidden.
      warn: called with a line of text when writing fails, and when it works again.
    """

    def __init__(self, workdir: Path | BucketPath, first_step: int, warn: Callable[[str], None]):
        self._warn, self._workdir = warn, workdir
        self._bucket = workdir.patient(_PATIENCE) if isinstance(workdir, BucketPath) else None
        self._local = tempfile.TemporaryDirectory(prefix="audiovae_jax_events_") if self._bucket is not None else None
        self._writer: EventsWriter | None = None
        self._files, self._failed_at, self._not_there = 0, None, False
        self._open()
        self.restart(first_step)

    def restart(self, first_step: int):
        """Hide earlier events from `first_step` on."""
        self._write(
            event_pb2.Event(step=first_step, session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))
        )

    def scalars(self, values: dict[str, float], step: int):
        """Record scalars by name."""
        for name, value in values.items():
            self._write(event_pb2.Event(step=step, summary=summary.scalar(name, value)))

    def text(self, name: str, text: str, step: int):
        """Record a line of text."""
        self._write(event_pb2.Event(step=step, summary=summary.text(name, text)))

    def audio(self, name: str, audio: np.ndarray, step: int, sample_rate: int):
        """Record `[T, C]` audio in -1..1."""
        self._write(event_pb2.Event(step=step, summary=summary.audio(name, audio, sample_rate)))

    def image(self, name: str, png: bytes, step: int):
        """Record a picture, a file in the PNG format."""
        width, height = struct.unpack(">II", png[16:24])  # the first fields of the first chunk
        image = summary_pb2.Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        value = summary_pb2.Summary.Value(tag=name, image=image)
        self._write(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[value])))

    def flush(self):
        """Write recorded events to disk or the bucket, or retry after a failure."""
        if self._writer is None and self._failed_at is not None:
            if time.monotonic() - self._failed_at > _AGAIN_AFTER:
                self._open()
            return
        self._attempt(self._flush)

    def close(self, finished: bool = False):
        """Flush, and close the file."""
        self._attempt(self._flush)
        self._attempt(lambda: self._writer.close())
        self._writer = self._failed_at = None
        if self._local is not None:
            self._local.cleanup()

    def _open(self):
        """Start a file.

        Its name has the process id, since files that start in the same second would have the same name.
        """
        folder = self._workdir if self._local is None else self._local.name
        number = f".{self._files}" if self._files else ""
        try:
            self._writer = EventsWriter(f"{folder}/events", f".{os.getpid()}{number}")
            self._writer.flush()
        except OSError as error:
            self._give_up(error)
            return
        self._files += 1
        if self._failed_at is not None:
            self._failed_at = None
            self._warn("TensorBoard events are written again")

    def _flush(self):
        self._writer.flush()
        if self._bucket is None:
            return
        for file in sorted(Path(self._local.name).iterdir()):
            try:
                (self._bucket / file.name).upload_file(file)
            except OSError as error:
                if not self._not_there:
                    self._warn(f"warning: TensorBoard events are not yet in {self._bucket}: {error.strerror or error}")
                self._not_there = True
                return
            self._not_there = False
            if file.stat().st_size > _LARGEST_OBJECT:
                self._writer.close()
                file.unlink()
                self._open()

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
        first = self._failed_at is None
        # Close the file itself: the writer's `close` flushes first, fails there, and leaves the file open.
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer._py_recordio_writer.close()
        self._writer, self._failed_at = None, time.monotonic()
        if first:  # warn after changing the state, since warnings are recorded too
            self._warn(f"warning: writing TensorBoard events failed, and is retried later: {error.strerror or error}")
