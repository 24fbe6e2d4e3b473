"""A survey as one page: its plots, and as HTML its tables too, in a file that needs no other."""

import io
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from audiovae_jax.data.survey import survey, text
from audiovae_jax.data.survey.survey import Survey
from audiovae_jax.html import document, escaped, picture
from audiovae_jax.storage import atomic

SUFFIXES = (".html", ".png")
_OUTLIERS = 10


def write(found: Survey, path: Path):
    """Write the page; OSError where that fails.

    Args:
      found: the survey.
      path: ends in one of `SUFFIXES`: the plots alone as PNG, or all as HTML.
    """
    plotted = io.BytesIO()
    plots(found).savefig(plotted, format="png", dpi=110)
    content = plotted.getvalue()
    if path.suffix.lower() == ".html":
        content = _page(found, content).encode()
    with atomic.replacing(path) as temporary:
        temporary.write_bytes(content)


def plots(found: Survey) -> Figure:
    """Six plots: lengths, rates and the split of all tracks; loudness, silence and spectra of those listened to."""
    figure = Figure(figsize=(13, 7), layout="constrained")
    (lengths, rates, split), (loudness, silence, ends) = figure.subplots(2, 3)
    shortest, longest = max(1e-3, min(found.lengths)), max(found.lengths)
    edges = np.geomspace(shortest, max(longest, 1.01 * shortest), 31)
    lengths.hist(np.clip(found.lengths, edges[0], edges[-1]), edges)
    lengths.set(xscale="log", title="lengths", xlabel="seconds", ylabel="tracks")
    lengths.axvline(found.crop_seconds, color="C1", label="a crop")
    lengths.legend()
    _bars(rates, {f"{rate / 1000:g} kHz": amount.hours for rate, amount in found.sample_rates.items()})
    rates.set(title="sample rates", ylabel="hours")
    _bars(split, {"train": found.train.hours, "validation": found.validation.hours})
    split.set(title="split", ylabel="hours")
    heard = found.measured
    loudness.hist([track.loudness_lufs for track in heard if track.loudness_lufs is not None], 30)
    loudness.set(title="loudness", xlabel="LUFS", ylabel="tracks listened to")
    silence.hist([100 * track.silence for track in heard], 20, range=(0, 100))
    silence.set(title="silence", xlabel="% of a track", ylabel="tracks listened to")
    top = max([found.sample_rate / 2, *(track.band_hz for track in heard)])
    ends.hist([track.band_hz / 1000 for track in heard if track.band_hz], 32, range=(0, top / 1000))
    ends.axvline(survey.full_band_hz(found) / 1000, color="C1", label="full from here on")
    ends.set(title="where spectra end", xlabel="kHz", ylabel="tracks listened to")
    ends.legend()
    for counted in (lengths, loudness, silence, ends):
        counted.yaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _bars(axes, values):
    axes.bar(list(values), list(values.values()), width=0.5)


def _page(found, plotted):
    refusal = f'<p class="refusal">training would refuse: {escaped(found.refusal)}</p>' if found.refusal else ""
    doubts = "".join(f'<p class="warning">{escaped(doubt)}</p>' for doubt in found.doubts)
    rows = "".join(f"<tr><th>{escaped(name)}</th><td>{escaped(value)}</td></tr>" for name, value in text.table(found))
    body = f"{refusal}{doubts}{picture(plotted, 'plots of the data set')}<table>{rows}</table>{_outliers(found)}"
    return document(f"Data set: {found.root}", body)


def _outliers(found):
    """Tables of the tracks that someone may want to hear for themselves."""
    heard = found.measured
    tables = (
        ("Most silence", lambda track: -track.silence, lambda track: f"{track.silence:.0%}", lambda t: t.silence > 0),
        ("Narrowest spectra", lambda track: track.band_hz, lambda track: f"{track.band_hz / 1000:.1f} kHz",
         lambda track: 0 < track.band_hz < survey.full_band_hz(found)),
        ("Most clips", lambda track: -track.clips_per_minute, lambda track: f"{track.clips_per_minute:.0f} a minute",
         lambda track: track.clips_per_minute > 0),
    )  # fmt: skip
    made = []
    for title, order, value, belongs in tables:
        worst = sorted(filter(belongs, heard), key=order)[:_OUTLIERS]
        rows = "".join(f'<tr><td>{escaped(t.name)}</td><td class="n">{value(t)}</td></tr>' for t in worst)
        made.append(f"<h2>{title}</h2><table>{rows}</table>" if worst else "")
    return "".join(made)
