"""The evaluation as one page that needs no other: table, distributions, and files to listen to."""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from audiovae_jax.errors import printable
from audiovae_jax.evaluation import clips
from audiovae_jax.evaluation.metrics import COLUMNS
from audiovae_jax.evaluation.presets import Preset
from audiovae_jax.html import document, escaped
from audiovae_jax.storage import atomic

AUDIO_BYTES = 24 * 10**6  # of all players together, as 16-bit samples
MOST_SECONDS = 8.0  # of a clip
_MOST_ROWS = 200  # of the table of files
_SHOWN = ("si_sdr_db", "auraloss_stft", "audiotools_mel", "side_snr_db", "loudness_difference_lu", "bandwidth_kept")
_STYLE = """
body { max-width: 90em } table { display: block; overflow-x: auto } td, th { white-space: normal }
td.n { white-space: nowrap; font-variant-numeric: tabular-nums } .best { font-weight: 700 }
small { color: #666; display: block; font-weight: 400 } th.n { text-align: right }
tr > th:first-child { min-width: 18em } audio { width: 100% }
.clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(22em, 1fr)); gap: 1em }
figure { margin: 0 } details { margin: 1em 0 }
"""


@dataclasses.dataclass(frozen=True)
class Listening:
    """A file to listen to.

    Attributes:
      title: why it is here.
      file: its name.
      row: of the first system.
      start: of the clip in the file, in seconds.
      sample_rate: in Hz.
      original: `[T, C]`.
      reconstructions: by system, of the same shape.
    """

    title: str
    file: str
    row: dict[str, Any]
    start: float
    sample_rate: int
    original: np.ndarray
    reconstructions: dict[str, np.ndarray]


def clip_seconds(files: int, systems: int, sample_rate: int, channels: int) -> float:
    """How long a clip may be, so that the page's players stay within `AUDIO_BYTES`."""
    clips_in_all = max(1, files * (1 + 2 * systems))
    return min(MOST_SECONDS, AUDIO_BYTES / clips_in_all / (2 * channels * sample_rate))


def write(
    path: Path,
    *,
    title: str,
    summary: dict[str, dict[str, dict[str, Any]]],
    descriptions: dict[str, str],
    rows: Sequence[dict[str, Any]],
    skipped: Sequence[tuple[str, str]],
    notes: Sequence[str],
    listening: Sequence[Listening],
    preset: Preset | None = None,
):
    """Write the page; OSError where that fails.

    Args:
      path: of the page.
      title: of the page.
      summary: see `summary.summarize`.
      descriptions: of the systems, by name, in order.
      rows: of the files.
      skipped: `(file, reason)`.
      notes: lines that a reader needs.
      listening: files with players.
      preset: the published table to compare with.
    """
    systems = list(descriptions)
    body = [
        "".join(f"<p><b>{escaped(name)}</b>: {escaped(what)}</p>" for name, what in descriptions.items()),
        "".join(f'<p class="warning">{escaped(note)}</p>' for note in notes),
        _table(summary, systems),
        "" if preset is None else _published(summary, systems, preset),
        _distributions(rows, systems),
        "<h2>Listen</h2>" if listening else "",
        *(_listening(entry) for entry in listening),
        _files(rows),
        _skipped(skipped),
    ]
    page = document(title, "".join(body), _STYLE)
    with atomic.replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _table(summary, systems):
    head = "".join(f'<th class="n">{escaped(name)}</th>' for name in systems)
    lines = []
    for name, column in COLUMNS.items():
        entries = [summary[system].get(name) for system in systems]
        if not any(entries):
            continue
        best = _best(column, entries)
        cells = []
        for entry in entries:
            if entry is None:
                cells.append("<td></td>")
                continue
            interval = "" if entry["low"] is None else f"{number(entry['low'])} to {number(entry['high'])}"
            median = "" if entry["median"] is None else f"median {number(entry['median'])}, "
            less = ""
            if entry.get("less_first_low") is not None and column.better:
                less = (
                    f"<small>against {escaped(systems[0])}: {entry['less_first']:+.3g} "
                    f"({number(entry['less_first_low'])} to {number(entry['less_first_high'])})</small>"
                )
            style = "n best" if entry is best else "n"
            cells.append(
                f'<td class="{style}">{number(entry["mean"])}<small>{interval}</small>'
                f"<small>{median}{entry['files']} files</small>{less}</td>"
            )
        arrow = {1: " ↑", -1: " ↓", 0: ""}[column.better]
        lines.append(
            f"<tr><th>{escaped(column.label)}{arrow}<small>{escaped(column.definition)}</small></th>{''.join(cells)}</tr>"
        )
    return (
        "<h2>Table</h2><p>Mean over files, with its 95 % bootstrap interval. Distances by different definitions are "
        f"not comparable.</p><table><tr><th></th>{head}</tr>{''.join(lines)}</table>"
    )


def _best(column, entries):
    known = [entry for entry in entries if entry is not None]
    if not column.better or len(known) < 2:
        return None
    return max(known, key=lambda entry: column.better * entry["mean"])


def _published(summary, systems, preset):
    head = "".join(
        f'<th class="n">{escaped(label)}<small>{escaped(name)}</small></th>' for name, label in preset.columns.items()
    )
    own = {f"{system} (here)": {n: e["mean"] for n, e in summary[system].items()} for system in systems}
    lines = "".join(
        f"<tr><th>{escaped(system)}</th>"
        + "".join(f'<td class="n">{number(values[name]) if name in values else ""}</td>' for name in preset.columns)
        + "</tr>"
        for system, values in (own | preset.rows).items()
    )
    differs = "".join(f"<li>{escaped(line)}</li>" for line in preset.differs)
    return (
        f"<h2>Beside a published table</h2><p>{escaped(preset.source)}. Its rows are of: {escaped(preset.audio)}.</p>"
        f"<table><tr><th></th>{head}</tr>{lines}</table><p>What differs:</p><ul>{differs}</ul>"
    )


def _distributions(rows, systems):
    shown = [name for name in _SHOWN if any(_known(row.get(name)) for row in rows)]
    if not shown:
        return ""
    figure = Figure(figsize=(13, 3.2 * -(-len(shown) // 3)), layout="constrained")
    axes = figure.subplots(-(-len(shown) // 3), 3, squeeze=False).ravel()
    rng = np.random.default_rng(0)
    for axis, name in zip(axes, shown, strict=False):
        for i, system in enumerate(systems):
            values = [row[name] for row in rows if row["system"] == system and _known(row.get(name))]
            if values:
                axis.boxplot([values], positions=[i], widths=0.5, showfliers=False)
                axis.plot(i + rng.uniform(-0.15, 0.15, len(values)), values, ".", alpha=0.5, markersize=4)
        axis.set_xticks(range(len(systems)), [printable(system) for system in systems], fontsize=8)
        axis.set_title(COLUMNS[name].label, fontsize=9)
    for axis in axes[len(shown) :]:
        axis.set_axis_off()
    return f'<h2>Distributions over files</h2><img alt="distributions over files" src="{clips.png(figure)}">'


def _listening(entry):
    original, peak = entry.original, max(1e-3, float(np.abs(entry.original).max(initial=0)))
    made = [_clip("original", original, entry, peak)]
    for system, audio in entry.reconstructions.items():
        made.append(_clip(f"{system}: reconstruction", audio, entry, peak))
        made.append(_clip(f"{system}: difference", audio - original, entry, peak))
    sdr = entry.row.get("si_sdr_db")
    said = f", SI-SDR {number(sdr)} dB" if _known(sdr) else ""
    return (
        f"<h3>{escaped(entry.title)}: {escaped(entry.file)}</h3><p>{entry.row['system']}{said}; "
        f"{len(original) / entry.sample_rate:.1f} s from {entry.start:.1f} s on, around its worst second.</p>"
        f'<div class="clips">{"".join(made)}</div>'
    )


def _clip(title, audio, entry, peak):
    name = escaped(title)
    return (
        f"<figure><figcaption>{name}</figcaption>"
        f'<audio controls preload="metadata" src="{clips.player(audio, entry.sample_rate)}"></audio>'
        f'<img alt="waveform and spectrogram, {name}" src="{clips.picture(audio, entry.sample_rate, peak)}"></figure>'
    )


def _files(rows):
    shown = [name for name in _SHOWN if any(_known(row.get(name)) for row in rows)]
    head = "".join(f"<th>{escaped(COLUMNS[name].label)}</th>" for name in shown)
    ordered = sorted(rows, key=lambda row: row["si_sdr_db"] if _known(row.get("si_sdr_db")) else math.inf)
    lines = "".join(
        f"<tr><td>{escaped(row['file'])}</td><td>{escaped(row['system'])}</td>"
        + "".join(f'<td class="n">{number(row[n]) if _known(row.get(n)) else ""}</td>' for n in shown)
        + "</tr>"
        for row in ordered[:_MOST_ROWS]
    )
    more = f"; all {len(rows)} are in files.csv" if len(rows) > _MOST_ROWS else ""
    return (
        f"<details><summary>Files, worst SI-SDR first{more}</summary>"
        f"<table><tr><th>file</th><th>system</th>{head}</tr>{lines}</table></details>"
    )


def _skipped(skipped):
    if not skipped:
        return ""
    lines = "".join(f"<li>{escaped(name)}: {escaped(reason)}</li>" for name, reason in skipped[:_MOST_ROWS])
    return f"<h2>Skipped: {len(skipped)}</h2><ul>{lines}</ul>"


def number(value: float) -> str:
    """A number for a table, with three or four digits that matter."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"


def _known(value):
    return value is not None and math.isfinite(value)
