"""Summary of files' rows as a table of systems: means, medians, intervals."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audiovae_jax.evaluation.metrics import COLUMNS

RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)


def summarize(rows: Sequence[Mapping[str, Any]], systems: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Summarise each column of each system over files.

    Args:
      rows: one per file and system, with `file`, `system` and columns. Values that are None or infinite are ignored.
      systems: names of the systems, in order.

    Returns:
      A dict by system and column of

      - `files`: number of files.
      - `mean`, `median`: over files.
      - `low`, `high`: the 95 % bootstrap interval of the mean.
      - `less_first`, except for the first system: the mean difference from the first system, on the files of both.
      - `less_first_low`, `less_first_high`: its interval. It is narrower, since files differ more than systems.
    """
    values = {(row["system"], name): {} for row in rows for name in COLUMNS}
    for row in rows:
        for name in COLUMNS:
            value = row.get(name)
            if value is not None and math.isfinite(value):
                values[row["system"], name][row["file"]] = value
    table = {}
    for system in systems:
        table[system] = {}
        for name in COLUMNS:
            own = values.get((system, name), {})
            if not own:
                continue
            entry = _entry(np.array(list(own.values())))
            first = values.get((systems[0], name), {})
            both = [key for key in own if key in first]
            if system != systems[0] and both:
                differences = np.array([own[key] - first[key] for key in both])
                low, high = bootstrap(differences)
                entry |= {"less_first": float(differences.mean()), "less_first_low": low, "less_first_high": high}
            table[system][name] = entry
    return table


def bootstrap(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> tuple[float | None, float | None]:
    """Compute the 95 % bootstrap percentile interval of the mean of values.

    The same values give the same interval. Its ends are None for fewer than two values.
    """
    if len(values) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    # One resample at a time, to save memory.
    means = [values[rng.integers(0, len(values), len(values))].mean() for _ in range(resamples)]
    low, high = np.percentile(means, _PERCENTILES)
    return float(low), float(high)


def _entry(values):
    low, high = bootstrap(values)
    return {
        "files": len(values),
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "low": low,
        "high": high,
    }
