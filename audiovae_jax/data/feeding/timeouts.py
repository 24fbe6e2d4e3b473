"""Records of files that may hang: what does not answer is passed over."""

from collections.abc import Sequence

import numpy as np

from audiovae_jax.data.audio import deadline
from audiovae_jax.data.feeding.health import Health
from audiovae_jax.data.feeding.origin import Origin


class Patient:
    """Another source's records, each file of which has a time to answer in.

    Args:
      source: its records say `deadline.begin` of each file, and pass over what `health` knows to hang.
      seconds: for each file; 0 waits for ever.
      health: told of what did not answer.
    """

    def __init__(self, source, seconds: float, health: Health):
        self._source, self._seconds, self._health = source, seconds, health

    def in_order(self, order: int) -> "Patient":
        """The source's records in another order."""
        return Patient(self._source.in_order(order), self._seconds, self._health)

    def origin(self, index: int) -> Origin | None:
        """Where the source's record comes from."""
        return self._source.origin(index)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.batch([index])[0]

    def batch(self, indices: Sequence[int]) -> np.ndarray:
        """Several records, stacked: a thread is waited for once, and not for each of them.

        Raises:
          DataError: too many files cannot be used.
        """
        while True:
            try:
                return deadline.within(self._seconds, stacked, self._source, indices)
            except deadline.TimedOutError as error:
                if error.what is None:  # no file's fault
                    raise
                self._health.replaced(error.what, f"{error.what}: {error}", is_hanging=True)


def stacked(source, indices: Sequence[int]) -> np.ndarray:
    """`[len(indices), ...]`: the records at `indices`."""
    if hasattr(source, "batch"):
        return source.batch(indices)
    first = source[indices[0]]
    batch = np.empty((len(indices), *np.shape(first)), np.asarray(first).dtype)
    batch[0] = first
    for row, index in enumerate(indices[1:], start=1):
        batch[row] = source[index]
    return batch
