"""Agreement between the processes of a run; trivial with one process."""

import jax
import numpy as np
from jax.experimental import multihost_utils

_MAX_REASON_BYTES = 600  # bytes; longer reasons are cut off


def is_first() -> bool:
    """Whether this is the first process, the only one that moves files."""
    return jax.process_index() == 0


def of_first(numbers: list[int]) -> list[int]:
    """Return the first process's `numbers` in all processes.

    Every process must call this.
    """
    if jax.process_count() == 1:
        return numbers
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(numbers))))
    if count == 0:
        return []
    # Sent as 32-bit halves: without x64, jax would truncate larger steps.
    halves = np.zeros((count, 2), np.uint32)
    if is_first():
        halves[:] = [[number >> 32, number & 0xFFFFFFFF] for number in numbers]
    return [(int(high) << 32) + int(low) for high, low in multihost_utils.broadcast_one_to_all(halves)]


def any_reason(reason: str | None) -> str | None:
    """Return the reason of the lowest-numbered process that has one, or None.

    Every process must call this, and all get the same reason. In the other processes, the text also names that
    process.
    """
    if jax.process_count() == 1:
        return reason
    text = np.zeros(_MAX_REASON_BYTES, np.uint8)
    encoded = (reason or "").encode()[:_MAX_REASON_BYTES]
    text[: len(encoded)] = np.frombuffer(encoded, np.uint8)
    for process, row in enumerate(np.asarray(multihost_utils.process_allgather(text))):
        if row.any():
            found = row.tobytes().rstrip(b"\0").decode(errors="ignore")
            return found if process == jax.process_index() else f"{found} (process {process})"
    return None
