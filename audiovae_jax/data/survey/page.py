"""A survey as one self-contained page with headline numbers, plots and tables."""

import dataclasses
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from audiovae_jax.data.survey import survey, text
from audiovae_jax.data.survey.survey import Survey
from audiovae_jax.html import drawing
from audiovae_jax.html.document import document, escaped, facts, table
from audiovae_jax.storage import atomic

SUFFIXES = (".html", ".png")
_OUTLIERS = 10
_ALIKE = 0.01  # relative to the largest value; values that differ less are not plotted
_BINS = 24


@dataclasses.dataclass(frozen=True)
class _Panel:
    """A plot of the page, or a text instead if all tracks are alike.

    Attributes:
      title: title of the panel.
      plot: function that draws on axes, or None if there is nothing to compare.
      value, note: text shown instead of the plot: the common value, with a note.
    """

    title: str
    plot: Callable[[Any], None] | None
    value: str = ""
    note: str = ""


def write(found: Survey, path: Path):
    """Write a survey as an HTML page, or its plots as a PNG image.

    Args:
      found: the survey.
      path: file to write, with one of `SUFFIXES`. PNG contains only the plots.

    Raises:
      OSError: the file cannot be written.
    """
    if path.suffix.lower() == ".html":
        content = _page(found).encode()
    else:
        plotted = io.BytesIO()
        plots(found).savefig(plotted, format="png", dpi=110)
        content = plotted.getvalue()
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(content)


def plots(found: Survey) -> Figure:
    """Plot a survey in six panels.

    Lengths, rates and the split are of all tracks. Loudness, silence and spectra are of the measured tracks.
    """
    with matplotlib.rc_context(drawing.LOOK):
        figure = Figure(figsize=(13, 7), layout="constrained")
        for axes, panel in zip(figure.subplots(2, 3).ravel(), _panels(found), strict=True):
            axes.set_title(panel.title, loc="left")
            if panel.plot is None:
                axes.set_axis_off()
                axes.text(0, 0.9, f"{panel.value}\n{panel.note}", va="top")
            else:
                panel.plot(axes)
    return figure


def _panels(found):
    measured, crop = found.measured, found.crop_seconds
    levels = [track.loudness_lufs for track in measured if track.loudness_lufs is not None]
    ends = [track.band_hz / 1000 for track in measured if track.band_hz]
    full, top = survey.full_band_hz(found) / 1000, max([found.sample_rate / 2000, *ends])
    rates = {f"{rate / 1000:g} kHz": amount.hours for rate, amount in found.sample_rates.items()}
    split = {side: part.hours for side, part in (("train", found.train), ("validation", found.validation))}
    return [
        _histogram("Length", found.lengths, "s", mark=(crop, "a crop"), log=True),
        _bars("Sample rate", rates),
        _bars("Split", {side: hours for side, hours in split.items() if hours}),
        _histogram("Loudness", levels, "LUFS"),
        _histogram("Silence", [100 * track.silence for track in measured], "% of a track", span=(0, 100)),
        _histogram("End of spectra", ends, "kHz", span=(0, top), mark=(full, "full band")),
    ]


def _histogram(title, values: Sequence[float], unit, *, span=None, mark=None, log=False):
    if not values:
        return _Panel(title, None, "unknown", "no track has a value")
    least, most = min(values), max(values)
    low, high = span or (least, most)
    edges = np.geomspace(max(low, 1e-3), max(high, 1e-3), _BINS + 1) if log else np.linspace(low, high, _BINS + 1)
    counts, _ = np.histogram(values, edges) if least < most else ([len(values)], None)
    if most - least <= _ALIKE * max(abs(least), abs(most)) or np.count_nonzero(counts) < 2:
        both = sorted({f"{least:.4g}", f"{most:.4g}"}, key=float)
        note = f"{text.counted(len(values))}{f'; {mark[1]}: {mark[0]:.3g} {unit}' if mark else ''}"
        return _Panel(title, None, f"{' to '.join(both)} {unit}", note)

    def plot(axes):
        axes.hist(np.clip(values, edges[0], edges[-1]), edges, color=drawing.series(0))
        axes.set_xscale("log" if log else "linear")
        shown = [*edges, mark[0]] if mark else edges
        drawing.set_ticks(axes.xaxis, min(shown), max(shown))
        axes.set(xlabel=f"{unit} (log scale)" if log else unit, ylabel="tracks")
        axes.yaxis.set_major_locator(MaxNLocator(4, integer=True))
        if mark:
            axes.axvline(mark[0], color=drawing.series(1), label=f"{mark[1]}, {mark[0]:.3g} {unit}")
            axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1), borderpad=0)

    return _Panel(title, plot)


def _bars(title, hours):
    if len(hours) < 2:
        return _Panel(title, None, next(iter(hours), "none"), "all tracks")

    unit, scale = ("hours", 1) if max(hours.values()) >= 1 else ("minutes", 60)

    def plot(axes):
        axes.barh(list(hours), [scale * value for value in hours.values()], color=drawing.series(0), height=0.6)
        axes.set(xlabel=unit)
        axes.invert_yaxis()
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        drawing.set_ticks(axes.xaxis, 0, scale * max(hours.values()))

    return _Panel(title, plot)


def _page(found):
    refusal = f'<p class="refusal">training would fail: {escaped(found.refusal)}</p>' if found.refusal else ""
    doubts = "".join(f'<p class="warning">{escaped(doubt)}</p>' for doubt in found.doubts)
    panels = _panels(found)
    drawn = "".join(
        f"<figure><figcaption>{panel.title}</figcaption>{drawing.draw(panel.plot, panel.title)}</figure>"
        for panel in panels
        if panel.plot is not None
    )
    alike = [(panel.title, panel.value, panel.note) for panel in panels if panel.plot is None]
    rows = [[escaped(name), escaped(value)] for name, value in text.table(found, bars=False)]
    body = [refusal, doubts, facts(_headline(found))]
    body += [f'<h2>Distributions</h2><div class="grid">{drawn}</div>'] if drawn else []
    body += [f"<h2>Alike in all tracks</h2>{facts(alike)}"] if alike else []
    body += [f"<h2>Details</h2>{table(rows)}", _outliers(found)]
    return document(f"Data set: {found.root}", "".join(body))


def _headline(found):
    levels = [track.loudness_lufs for track in found.measured if track.loudness_lufs is not None]
    yield "Audio", text.duration(found.total.hours), text.counted(found.total.tracks)
    yield "Skipped", f"{sum(entry.files for entry in found.skipped)} files", f"of {found.files}"
    if levels:
        yield "Loudness", f"{np.median(levels):.1f} LUFS", f"median of {text.counted(len(levels))}"
    if found.reading:
        speed = found.reading.crops_per_second * found.crop_seconds
        yield "Reading, times real time", f"{speed:.0f}", f"{found.reading.crops_per_second:.1f} crops a second"


def _outliers(found):
    """Return tables of the tracks that are worth listening to."""
    measured = found.measured
    tables = (
        ("Most silence", lambda track: -track.silence, lambda track: f"{track.silence:.0%}", lambda t: t.silence > 0),
        ("Narrowest spectra", lambda track: track.band_hz, lambda track: f"{track.band_hz / 1000:.1f} kHz",
         lambda track: 0 < track.band_hz < survey.full_band_hz(found)),
        ("Most clips", lambda track: -track.clips_per_minute, lambda track: f"{track.clips_per_minute:.0f} a minute",
         lambda track: track.clips_per_minute > 0),
    )  # fmt: skip
    made = []
    for title, order, value, belongs in tables:
        worst = sorted(filter(belongs, measured), key=order)[:_OUTLIERS]
        rows = [[escaped(track.name.removeprefix(f"{found.root}/")), value(track)] for track in worst]
        made.append(f"<div><h3>{title}</h3>{table(rows, numbers=True)}</div>" if worst else "")
    return f'<h2>Tracks to listen to</h2><div class="grid">{"".join(made)}</div>' if any(made) else ""
