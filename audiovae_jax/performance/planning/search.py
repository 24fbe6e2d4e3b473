"""The largest batch that fits, found in few compiles: peak memory is nearly a straight line over the batch."""

from collections.abc import Callable

MOST = 1 << 16  # items on a device


def largest_batch(
    peak: Callable[[int], int | None],
    *,
    known: dict[int, int | None],
    fixed_bytes: int,
    usable_bytes: int,
    compiles: int,
) -> tuple[int, bool]:
    """The largest batch per device whose peak memory is no more than there is.

    A batch is proposed where a line through what is known crosses the limit, and compiled. The search ends when the
    line proposes a batch that was compiled and fits, or that with the next larger one not fitting.

    Args:
      peak: compiles for a batch: its peak in bytes, or None where the compiler finds no room.
      known: peaks of batches that were compiled before; what is found is added.
      fixed_bytes: that a batch of none would take: the state.
      usable_bytes: of a device.
      compiles: at most so many more.

    Returns:
      The largest batch that was compiled and fits (0 if none did), and whether the search came to its end.
    """
    while True:
        fits, too_large = bracket(known, usable_bytes)
        if too_large == fits + 1:
            return fits, True
        proposed = _proposed(known, fits, too_large, fixed_bytes, usable_bytes)
        if proposed == fits:
            return fits, True
        if compiles <= 0:
            return fits, False
        compiles -= 1
        known[proposed] = peak(proposed)


def bracket(known: dict[int, int | None], usable_bytes: int) -> tuple[int, int]:
    """The largest batch that is known to fit (0: none), and the smallest known not to (MOST + 1: none)."""
    too_large = min((batch for batch, bytes_ in known.items() if not _fits(bytes_, usable_bytes)), default=MOST + 1)
    fits = max((batch for batch, bytes_ in known.items() if _fits(bytes_, usable_bytes)), default=0)
    return fits, max(too_large, fits + 1)


def _fits(bytes_, usable_bytes):
    return bytes_ is not None and bytes_ <= usable_bytes


def _proposed(known, fits, too_large, fixed_bytes, usable_bytes):
    points = sorted({0: fixed_bytes, **{b: peak for b, peak in known.items() if peak is not None}}.items())
    if len(points) == 1:
        return max(1, too_large // 2)
    # The two points nearest to the limit: the line bends where the compiler chooses other algorithms.
    (a, low), (b, high) = sorted(sorted(points, key=lambda point: abs(point[1] - usable_bytes))[:2])
    slope = (high - low) / (b - a)
    crossing = MOST if slope <= 0 else a + (usable_bytes - low) / slope
    if crossing < fits + 1:
        return fits or 1
    return min(int(crossing), too_large - 1)
