"""Reading records with a timeout per file, so that files that hang are skipped."""

from collections.abc import Sequence

import numpy as np

from audiovae_jax.data.audio import deadline
from audiovae_jax.data.feeding.health import Health
from audiovae_jax.data.feeding.origin import Origin


class Patient:
    """A source of records that times out on files that hang.

    Args:
      source: a source that calls `deadline.begin` for each file, and skips files that `health` lists as hanging.
      seconds: timeout per file; 0 for none.
      health: notified of timeouts.
    """

    def __init__(self, source, seconds: float, health: Health):
        self._source, self._seconds, self._health = source, seconds, health

    def in_order(self, order: int) -> "Patient":
        """Return the same source with its records in another order."""
        return Patient(self._source.in_order(order), self._seconds, self._health)

    def origin(self, index: int) -> Origin | None:
        """Return the origin of the source's record."""
        return self._source.origin(index)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.batch([index])[0]

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        """Return several records, stacked.

        All of them are read by one call of the helper thread.

        Raises:
          DataError: too many files are bad.
        """
        while True:
            try:
                return deadline.within(self._seconds, stacked, self._source, indices)
            except deadline.TimedOutError as error:
                if error.what is None:  # not caused by a file
                    raise
                self._health.replaced(error.what, f"{error.what}: {error}", is_hanging=True)


def stacked(source, indices: Sequence[int]) -> np.ndarray:
    """Return the records at `indices`, stacked: `[len(indices), ...]`."""
    if hasattr(source, "batch"):
        return source.batch(indices)
    first = source[indices[0]]
    batch = np.empty((len(indices), *np.shape(first)), np.asarray(first).dtype)
    batch[0] = first
    for row, index in enumerate(indices[1:], start=1):
        batch[row] = source[index]
    return batch
