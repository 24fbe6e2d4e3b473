"""The interface of what records a run, and several of them as one."""

import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np


class Writer:
    """Records a run; each method may be left as it is, which records nothing.

    Attributes:
      takes_models: whether `model` is worth being called.
    """

    takes_models = False

    def restart(self, first_step: int):
        """Hide what was recorded from `first_step` on, where that can be hidden: those steps come again."""

    def scalars(self, values: dict[str, float], step: int):
        """Record numbers by their names."""

    def text(self, name: str, text: str, step: int):
        """Record a line of text."""

    def audio(self, name: str, audio: np.ndarray, step: int, sample_rate: int):
        """Record `[T, C]` audio in -1..1."""

    def image(self, name: str, image: np.ndarray, step: int):
        """Record a picture, `[height, width, 3]` uint8."""

    def model(self, folder: Path):
        """Record a saved model."""

    def flush(self):
        """Put what was recorded where it belongs."""

    def close(self, finished: bool):
        """Flush, and let go; `finished` tells a run that is done from one that may go on."""


class Writers(Writer):
    """Several writers as one, which several threads may use."""

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

    def image(self, name, image, step):
        self._each(lambda writer: writer.image(name, image, step))

    def model(self, folder):
        self._each(lambda writer: writer.model(folder))

    def flush(self):
        self._each(lambda writer: writer.flush())

    def close(self, finished):
        # The last first, and without the lock: what a thread has to say at its end is recorded by those before it.
        for writer in reversed(self._writers):
            writer.close(finished)

    def _each(self, act):
        with self._lock:
            for writer in self._writers:
                act(writer)
