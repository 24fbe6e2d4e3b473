"""From rows of files to a table of systems: means, medians, and how sure they are."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from audiovae_jax.evaluation.metrics import COLUMNS

RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)


def summarize(rows: Sequence[Mapping[str, Any]], systems: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """The numbers of each column of each system over its files.

    Args:
      rows: each with `file`, `system` and columns; what is None or infinite is left out of its column.
      systems: their names, in order.

    Returns:
      By system and column: `files`, `mean`, `median`, `low` and `high`, the 95 % bootstrap interval of the mean over
      files. For every system but the first also `less_first`, the mean difference from the first system on the files
      that both have, with `less_first_low` and `less_first_high`: narrower, since files differ more than systems.
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
    """The 95 % percentile interval of the mean of values, resampled with replacement; None of a single value.

    The same values give the same interval.
    """
    if len(values) < 2:
        return None, None
    rng = np.random.default_rng(seed)
    # Some at a time, so that many files take little memory.
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
