"""Curves as SVG, so that a page of them is small and sharp."""

import math
from collections.abc import Mapping

import numpy as np

from audiovae_jax.html import escaped

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b", "#e377c2", "#17becf")
_WIDTH, _HEIGHT = 350, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 22, 26, 24
_MOST_POINTS = 400  # of a curve; of more, each stretch gives its least and its greatest
_LOGARITHMIC_FROM = 50  # times the smallest value that the greatest must be


def chart(title: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Curves over steps in one picture.

    Args:
      title: above it.
      series: `{name: (steps, values)}`, `[N]` each; values that are not finite are gaps.
    """
    finite = {name: _finite(steps, values) for name, (steps, values) in series.items()}
    drawn = [(steps, values) for steps, values in finite.values() if len(steps)]
    if not drawn:
        return f"<figure><figcaption>{escaped(title)}: no number</figcaption></figure>"
    every = np.concatenate([values for _, values in drawn])
    logarithmic = every.min() > 0 and every.max() / every.min() >= _LOGARITHMIC_FROM
    x = _Axis(min(s.min() for s, _ in drawn), max(s.max() for s, _ in drawn), _LEFT, _WIDTH - _RIGHT, False)
    y = _Axis(every.min(), every.max(), _HEIGHT - _BOTTOM, _TOP, logarithmic)
    parts = [f'<text x="{_LEFT}" y="16" style="font-size:13px;fill:#222">{escaped(title)}</text>']
    for value, label in y.ticks():
        at = y.at(value)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at:.1f}" y2="{at:.1f}" stroke="#eee"/>')
        parts.append(f'<text x="{_LEFT - 4}" y="{at + 4:.1f}" text-anchor="end">{label}</text>')
    for value, label in x.ticks():
        parts.append(f'<text x="{x.at(value):.1f}" y="{_HEIGHT - 8}" text-anchor="middle">{label}</text>')
    for i, (name, (steps, values)) in enumerate(finite.items()):
        if not len(steps):
            continue
        steps, values = _thinned(steps, values)
        points = " ".join(f"{x.at(s):.1f},{y.at(v):.1f}" for s, v in zip(steps, values, strict=True))
        colour = COLOURS[i % len(COLOURS)]
        said = escaped(f"{name}: {values[-1]:.6g} at step {steps[-1]:g}")
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"><title>{said}</title>'
            "</polyline>"
        )
        if len(steps) == 1:
            parts.append(f'<circle cx="{x.at(steps[0]):.1f}" cy="{y.at(values[0]):.1f}" r="2.5" fill="{colour}"/>')
    return (
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'
    )


class _Axis:
    """From values to places in the picture."""

    def __init__(self, low, high, start, end, logarithmic):
        if low == high:
            low, high = (low / 2, low * 2) if logarithmic else (low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2)
        self._map = math.log10 if logarithmic else float
        self._low, self._high, self._logarithmic = low, high, logarithmic
        self._start, self._scale = start, (end - start) / (self._map(high) - self._map(low))

    def at(self, value):
        return self._start + (self._map(value) - self._map(self._low)) * self._scale

    def ticks(self):
        """`(value, label)` of round values, with as many digits as tell them apart."""
        if self._logarithmic:
            exponents = range(math.ceil(math.log10(self._low)), math.floor(math.log10(self._high)) + 1)
            values = [10.0**exponent for exponent in exponents]
            return [(value, f"{value:.3g}") for value in (values if len(values) > 1 else (self._low, self._high))]
        rough = (self._high - self._low) / 4
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
        numbers = range(math.ceil(self._low / step - 1e-9), math.floor(self._high / step + 1e-9) + 1)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return [(i * step, f"{i * step:.{digits}f}" if digits < 7 else f"{i * step:.3g}") for i in numbers]


def _finite(steps, values):
    steps, values = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    keep = np.isfinite(values)
    return steps[keep], values[keep]


def _thinned(steps, values):
    if len(steps) <= _MOST_POINTS:
        return steps, values
    kept = {0, len(steps) - 1}
    for part in np.array_split(np.arange(len(steps)), _MOST_POINTS // 2):
        kept |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    order = sorted(kept)
    return steps[order], values[order]
