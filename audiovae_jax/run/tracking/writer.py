"""The interface of writers, which record a run, and a group of writers."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class Writer:
    """Records a run; methods that a subclass does not override record nothing.

    Attributes:
      takes_models: whether `model` records anything.
    """

    takes_models = False

    def restart(self, first_step: int):
        """Hide earlier records from `first_step` on if possible; those steps repeat."""

    def scalars(self, values: dict[str, float], step: int):
        """Record scalars by name."""

    def text(self, name: str, text: str, step: int):
        """Record a line of text."""

    def audio(self, name: str, audio: np.ndarray, step: int, sample_rate: int):
        """Record `[T, C]` audio in -1..1."""

    def image(self, name: str, png: bytes, step: int):
        """Record a picture, a file in the PNG format."""

    def model(self, folder: Path):
        """Record a saved model."""

    def flush(self):
        """Write buffered records to their destination."""

    def close(self, finished: bool):
        """Flush and close; `finished` is False if the run may be resumed."""


class Writers(Writer):
    """A thread-safe group of writers that acts as one."""

    def __init__(self, writers: Sequence[Writer]):
        self._writers = tuple(writers)
        self._lock = threading.RLock()

    @property
    def takes_models(self):
        return any(writer.takes_models for writer in self._writers)

    def restart(self, first_step):
        self._each(lambda writer: writer.restart(first_step))

    def scalars(self, values, step):
        self._each(lambda writer: writer.scalars(values, step))

    def text(self, name, text, step):
        self._each(lambda writer: writer.text(name, text, step))

    def audio(self, name, audio, step, sample_rate):
        self._each(lambda writer: writer.audio(name, audio, step, sample_rate))

    def image(self, name, png, step):
        self._each(lambda writer: writer.image(name, png, step))

    def model(self, folder):
        self._each(lambda writer: writer.model(folder))

    def flush(self):
        self._each(lambda writer: writer.flush())

    def close(self, finished):
        # In reverse order and without the lock, so that a thread's last warnings are recorded by earlier writers.
        for writer in reversed(self._writers):
            writer.close(finished)

    def _each(self, act):
        with self._lock:
            for writer in self._writers:
                act(writer)
