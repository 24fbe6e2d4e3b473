"""Charts of metrics over training steps."""

from collections.abc import Mapping

import numpy as np

from audiovae_jax.html import drawing
from audiovae_jax.html.document import escaped

_MAX_POINTS = 400  # points drawn per curve; longer curves show the minimum and maximum of each section
_LOGARITHMIC_FROM = 50  # ratio of the largest to the smallest value from which the scale is logarithmic


def chart(title: str, series: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Draw curves in one chart, with the last value of each, as HTML.

    Args:
      title: caption of the chart.
      series: `{name: (steps, values)}`, `[N]` each. Values that are not finite are left out.
    """
    curves = {name: finite(*points) for name, points in series.items()}
    drawn = [values for _, values in curves.values() if len(values)]
    if not drawn:
        return f"<figure><figcaption>{escaped(title)}: no values</figcaption></figure>"
    low, high = min(map(np.min, drawn)), max(map(np.max, drawn))
    scale = "log" if low > 0 and high / low >= _LOGARITHMIC_FROM else "linear"

    def plot(axes):
        from matplotlib.ticker import EngFormatter, MaxNLocator

        # A fixed position lines up neighbouring charts and is faster than a computed layout.
        axes.figure.set_layout_engine("none")
        axes.set_position((0.13, 0.12, 0.85, 0.84))
        for i, (steps, values) in enumerate(curves.values()):
            steps, values = _thinned(steps, values)
            axes.plot(steps, values, "o" if len(steps) == 1 else "-", color=drawing.series(i), linewidth=1.4)
        axes.set_yscale(scale)
        drawing.set_ticks(axes.yaxis, low, high)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 5, 10), integer=True))
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))

    last = "".join(
        f"<span>{drawing.key(i)}{escaped(name)} <b>{values[-1]:.4g}</b></span>"
        for i, (name, (_, values)) in enumerate(curves.items())
        if len(values)
    )
    return (
        f"<figure><figcaption>{escaped(title)}<small>{scale} scale</small></figcaption>"
        f'{drawing.draw(plot, f"{title} over steps")}<div class="legend muted">{last}</div></figure>'
    )


def finite(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the points of a curve whose values are finite."""
    steps, values = np.asarray(steps, np.float64), np.asarray(values, np.float64)
    keep = np.isfinite(values)
    return steps[keep], values[keep]


def _thinned(steps, values):
    if len(steps) <= _MAX_POINTS:
        return steps, values
    kept = {0, len(steps) - 1}
    for part in np.array_split(np.arange(len(steps)), _MAX_POINTS // 2):
        kept |= {int(part[values[part].argmin()]), int(part[values[part].argmax()])}
    order = sorted(kept)
    return steps[order], values[order]
