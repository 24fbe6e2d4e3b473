"""Searches the largest batch that fits, with few compiles.

Peak memory is almost linear in the batch size.
"""

from collections.abc import Callable

MAX_BATCH = 1 << 16  # items per device


def largest_batch(
    peak: Callable[[int], int | None],
    *,
    known: dict[int, int | None],
    fixed_bytes: int,
    usable_bytes: int,
    compiles: int,
) -> tuple[int, bool]:
    """Search the largest batch per device whose peak memory fits.

    Each proposal is where a line through the known peaks crosses the limit. The search ends when the largest batch that
    fits is proposed again, or when the next larger one is known not to fit.

    Args:
      peak: compiles for a batch size and returns its peak in bytes, or None if the compiler runs out of device memory.
      known: peaks by batch size, of earlier compiles. New ones are added.
      fixed_bytes: memory without any items: the state.
      usable_bytes: memory of a device.
      compiles: maximum number of further compiles.

    Returns:
      The largest batch that was compiled and fits (0 if none), and whether the search is complete.
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
    """The largest batch known to fit, and the smallest known not to fit.

    These default to 0 and `MAX_BATCH + 1`.
    """
    too_large = min(
        (batch for batch, bytes_ in known.items() if not _fits(bytes_, usable_bytes)), default=MAX_BATCH + 1
    )
    fits = max((batch for batch, bytes_ in known.items() if _fits(bytes_, usable_bytes)), default=0)
    return fits, max(too_large, fits + 1)


def _fits(bytes_, usable_bytes):
    return bytes_ is not None and bytes_ <= usable_bytes


def _proposed(known, fits, too_large, fixed_bytes, usable_bytes):
    points = sorted({0: fixed_bytes, **{b: peak for b, peak in known.items() if peak is not None}}.items())
    if len(points) == 1:
        return max(1, too_large // 2)
    # The two points nearest to the limit, because the slope changes when the compiler chooses other algorithms.
    (a, low), (b, high) = sorted(sorted(points, key=lambda point: abs(point[1] - usable_bytes))[:2])
    slope = (high - low) / (b - a)
    crossing = MAX_BATCH if slope <= 0 else a + (usable_bytes - low) / slope
    if crossing < fits + 1:
        return fits or 1
    return min(int(crossing), too_large - 1)
