"""Matplotlib drawings as inline SVG in the page's colours and font."""

import io
import re
from collections.abc import Callable
from typing import Any

from audiovae_jax.html.document import COLOURS, SERIES, escaped

INK, MUTED, LINE = (COLOURS[name][0] for name in ("ink", "muted", "line"))
LOOK: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.edgecolor": LINE,
    "axes.labelcolor": MUTED,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.titleweight": "bold",
    "grid.color": LINE,
    "text.color": INK,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
}
_DOT = 2.5  # radius, in points
_DECADES = 1e3  # ratio of the largest to the smallest value from which only powers of ten are ticks
_VARIABLES = {pair[0]: name for name, pair in COLOURS.items()}
_VARIABLES |= {pair[0]: f"series-{i}" for i, pair in enumerate(SERIES)}


def series(i: int) -> str:
    """Return the Matplotlib colour of series `i`; colours repeat after the last one."""
    return SERIES[i % len(SERIES)][0]


def key(i: int) -> str:
    """Return the coloured dot of series `i` for a legend, as HTML."""
    return f'<span class="key" style="background:var(--series-{i % len(SERIES)})"></span>'


def set_ticks(axis: Any, low: float, high: float):
    """Set round ticks with plain numbers on a Matplotlib axis.

    Args:
      axis: a Matplotlib axis.
      low, high: range of the values.
    """
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    locator: Any = MaxNLocator(5, steps=(1, 2, 2.5, 5, 10))
    if axis.get_scale() == "log":
        locator = LogLocator(subs=(1, 3) if high < _DECADES * low else (1,), numticks=7)
    axis.set_major_locator(locator)
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:.10g}")


def draw(plot: Callable[[Any], None], description: str, *, width: float = 4.0, height: float = 2.2) -> str:
    """Draw on Matplotlib axes, and return the drawing as SVG.

    Of all markers, only `o` is supported.

    Args:
      plot: draws on the given Matplotlib axes.
      description: text for screen readers.
      width, height: nominal size in inches. The page scales the drawing to the available width.
    """
    import matplotlib
    from matplotlib.figure import Figure

    content = io.StringIO()
    with matplotlib.rc_context(LOOK):
        figure = Figure((width, height), layout="constrained")
        plot(figure.subplots())
        figure.savefig(
            content, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = content.getvalue()
    svg = svg[svg.index("<svg") :]
    # Matplotlib's dots refer to a path by an id, which could clash between drawings. Circles need no id.
    svg = re.sub(
        r'<use xlink:href="[^"]*" x="([^"]*)" y="([^"]*)" style="([^"]*)"/>',
        rf'<circle cx="\1" cy="\2" r="{_DOT}" style="\3"/>',
        svg,
    )
    svg = re.sub(r"<defs>.*?</defs>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (?:id|clip-path|xmlns(?::xlink)?|version)="[^"]*"| ?font-family: [^;"]*;?', "", svg)
    svg = re.sub("#[0-9a-f]{6}", lambda found: _variable(found[0]), svg)
    return f'<svg role="img" aria-label="{escaped(description)}" {svg[svg.index("viewBox") :]}'


def _variable(colour):
    return f"var(--{_VARIABLES[colour]})" if colour in _VARIABLES else colour
