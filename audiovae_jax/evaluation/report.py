"""Write an evaluation as one HTML page with tables, plots and audio players."""

import dataclasses
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from audiovae_jax.errors import printable
from audiovae_jax.evaluation.metrics import COLUMNS
from audiovae_jax.evaluation.presets import Preset
from audiovae_jax.html import clips, drawing, picture
from audiovae_jax.html.document import document, escaped, facts, player, table
from audiovae_jax.storage import atomic

AUDIO_BYTES = 24 * 10**6  # bytes of all players together, as 16-bit samples
MAX_SECONDS = 8.0  # per clip
_MAX_ROWS = 200  # in the table of files
_MAIN = "si_sdr_db"
_HEADLINE = (_MAIN, "audiotools_mel", "bits_per_second")
_OF_MODELS = (*_HEADLINE, "realtime_factor")
_CHARTED = (_MAIN, "auraloss_stft", "audiotools_mel", "side_snr_db", "loudness_difference_lu", "bandwidth_kept")
_LABEL = 18  # maximum number of characters of a system's name in a plot
_FOLDERS = re.compile(r"(?<![\w.:/])/(?:[^/\s'\"]+/)+")
_STYLE = """
.summary { display: grid; grid-template-columns: 3fr 2fr; gap: 2.5rem; align-items: center }
.summary .facts { grid-template-columns: repeat(3, 1fr) }
.listen { display: grid; grid-template-columns: minmax(0, 1fr) minmax(0, 2fr); gap: 1.25rem }
.original > div { position: sticky; top: 1rem } .listen svg { margin-top: .5rem }
.pair { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.25rem; margin-bottom: 1.25rem }
@media (max-width: 56rem) {
  .summary { grid-template-columns: minmax(0, 1fr); gap: .5rem }
  .facts b { font-size: 1.2rem } .facts .card { padding: .6rem .7rem } .summary .facts { gap: .4rem }
  .listen, .pair { grid-template-columns: minmax(0, 1fr) } .original, .original > div { display: contents }
  .original .held { position: sticky; top: 0; z-index: 1; background: var(--card); padding: .5rem 0 }
}
"""


@dataclasses.dataclass(frozen=True)
class Listening:
    """A clip of a file to listen to.

    Attributes:
      title: reason why the file was selected.
      file: name of the file.
      row: the file's results for the first system.
      start: start of the clip in the file, in seconds.
      sample_rate: in Hz.
      original: `[T, C]`.
      reconstructions: `[T, C]` for each system.
    """

    title: str
    file: str
    row: dict[str, Any]
    start: float
    sample_rate: int
    original: np.ndarray
    reconstructions: dict[str, np.ndarray]


def clip_seconds(files: int, systems: int, sample_rate: int, channels: int) -> float:
    """Return the clip length in seconds.

    All players together stay within `AUDIO_BYTES`.
    """
    clips_in_all = max(1, files * (1 + 2 * systems))
    return min(MAX_SECONDS, AUDIO_BYTES / clips_in_all / (2 * channels * sample_rate))


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
    """Write the page.

    Args:
      path: path of the page.
      title: title of the page.
      summary: see `summary.summarize`.
      descriptions: description of each system by name, in display order.
      rows: results of each file and system.
      skipped: `(file, reason)` of each skipped file.
      notes: warnings to show.
      listening: clips with players.
      preset: published table to compare with, if any.

    Raises:
      OSError: the page cannot be written.
    """
    systems = list(descriptions)
    body = [
        _summary(summary, systems, rows),
        "".join(f'<p class="warning">{_text(note)}</p>' for note in notes),
        _models(summary, descriptions),
        "" if preset is None else _published(summary, systems, preset),
        _listening(listening),
        _distributions(rows, systems),
        _metrics(summary, systems),
        _files(rows),
        _skipped(skipped),
    ]
    page = document(title, "".join(body), _STYLE)
    with atomic.replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def _text(value):
    """Return text as HTML, with the folders of local paths removed."""
    return escaped(_FOLDERS.sub("", str(value)))


def _summary(summary, systems, rows):
    first, columns = systems[0], summary[systems[0]]
    seconds = {row["file"]: row["seconds"] for row in rows}
    files = f"{len(seconds)} file{'' if len(seconds) == 1 else 's'} ({sum(seconds.values()) / 60:.1f} min)"
    mean = {system: summary[system][_MAIN]["mean"] for system in systems if _MAIN in summary[system]}
    said = f"{first} was measured on {files}."
    if first in mean:
        said = f"{first} reaches an SI-SDR of {number(mean[first])} dB on average over {files}."
    if len(mean) > 1:
        best = max(mean, key=mean.get)
        said += f" Of {len(mean)} systems, {best} has the highest: {number(mean[best])} dB."
    numbers = [
        (f"{COLUMNS[name].label}{_arrow(name)}", number(columns[name]["mean"]), _interval(columns[name]))
        for name in _HEADLINE
        if name in columns
    ]
    drawn = _strip(rows, systems, _MAIN)
    return f'<div class="summary"><div><p class="lead">{_text(said)}</p>{facts(numbers)}</div><div>{drawn}</div></div>'


def _models(summary, descriptions):
    shown = [name for name in _OF_MODELS if any(name in columns for columns in summary.values())]
    rows = [
        [
            f"{_text(system)}<small>{_text(description)}</small>",
            *(_mean(summary[system].get(name), _best(COLUMNS[name], summary, name)) for name in shown),
        ]
        for system, description in descriptions.items()
    ]
    header = ["", *(f"{COLUMNS[name].label}{_arrow(name)}" for name in shown)]
    return f"<h2>Systems</h2>{table(rows, header, numbers=True)}"


def _metrics(summary, systems):
    files = max((entry["files"] for columns in summary.values() for entry in columns.values()), default=0)
    rows = []
    for name, column in COLUMNS.items():
        if not any(name in summary[system] for system in systems):
            continue
        best = _best(column, summary, name)
        cells = []
        for system in systems:
            entry = summary[system].get(name)
            cell = _mean(entry, best)
            if entry is not None and entry["low"] is not None:
                cell += f"<small>median {number(entry['median'])}</small>"
            if entry is not None and entry["files"] < files:
                cell += f"<small>of {entry['files']} files</small>"
            if entry is not None and entry.get("less_first_low") is not None and column.better:
                low, high = number(entry["less_first_low"]), number(entry["less_first_high"])
                cell += f"<small>Δ {entry['less_first']:+.3g} ({low} to {high})</small>"
            cells.append(cell)
        label = f"{_text(column.label)}{_arrow(name)}<small>{_text(column.definition)}</small>"
        rows.append([label, *cells])
    others = (
        f" Δ is the difference from {_text(systems[0])} on the files that both systems have."
        if len(systems) > 1
        else ""
    )
    return (
        "<h2>All metrics</h2><p>Means over files, with their 95 % bootstrap intervals. Higher is better at ↑, lower at "
        f"↓. Distances of different definitions are not comparable.{others}</p>"
        f"{table(rows, ['', *systems], numbers=True)}"
    )


def _mean(entry, best):
    if entry is None:
        return ""
    value = number(entry["mean"])
    return f"{f'<b>{value}</b>' if entry is best else value}<small>{_interval(entry)}</small>"


def _interval(entry):
    low, high = ("" if entry[end] is None else number(entry[end]) for end in ("low", "high"))
    return f"{low} to {high}" if low != high else ""


def _arrow(name):
    return {1: "\N{NO-BREAK SPACE}↑", -1: "\N{NO-BREAK SPACE}↓", 0: ""}[COLUMNS[name].better]


def _best(column, summary, name):
    known = [columns[name] for columns in summary.values() if name in columns]
    if not column.better or len(known) < 2:
        return None
    return max(known, key=lambda entry: column.better * entry["mean"])


def _published(summary, systems, preset):
    own = {f"{system} (here)": {n: e["mean"] for n, e in summary[system].items()} for system in systems}
    rows = [
        [_text(system), *(number(values[name]) if name in values else "" for name in preset.columns)]
        for system, values in (own | preset.rows).items()
    ]
    differs = "".join(f"<li>{_text(line)}</li>" for line in preset.differs)
    return (
        f"<h2>Compared with a published table</h2><p>{_text(preset.source)}. Its audio: {_text(preset.audio)}.</p>"
        f"{table(rows, ['', *preset.columns.values()], numbers=True)}<p>Differences:</p><ul>{differs}</ul>"
    )


def _distributions(rows, systems):
    shown = [_strip(rows, systems, name) for name in _CHARTED[1:]]
    if not any(shown):
        return ""
    return f'<h2>Distributions over files</h2><div class="grid">{"".join(shown)}</div>'


def _strip(rows, systems, name):
    """Plot one metric: a row per system, a dot per file and a stroke for the mean.

    The result is empty if no file has a value.
    """
    values = [[row[name] for row in rows if row["system"] == s and _known(row.get(name))] for s in systems]
    if not any(values):
        return ""
    labels = [s if len(s) <= _LABEL else f"{s[: _LABEL - 1]}…" for s in map(printable, systems)]

    def plot(axes):
        for i, numbers in enumerate(values):
            if numbers:
                axes.plot(numbers, [i] * len(numbers), "o", color=drawing.series(i), alpha=0.6)
                axes.plot([np.mean(numbers)] * 2, [i - 0.3, i + 0.3], color=drawing.INK, linewidth=2)
        axes.set_yticks(range(len(labels)), labels, parse_math=False)
        axes.set_ylim(len(labels) - 0.5, -0.5)
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")

    label = f"{COLUMNS[name].label}{_arrow(name)}"
    drawn = drawing.draw(plot, f"{label} of every file", height=0.5 + 0.27 * len(labels))
    return f"<figure><figcaption>{_text(label)}<small>by file, and the mean</small></figcaption>{drawn}</figure>"


def _listening(listening):
    if not listening:
        return ""
    hint = "If another player of the same file is started, it continues at the same position."
    return f"<h2>Listen</h2><p>{hint}</p>{''.join(map(_card, listening))}"


def _card(entry):
    sdr = entry.row.get(_MAIN)
    said = f", SI-SDR {number(sdr)} dB" if _known(sdr) else ""
    seconds = len(entry.original) / entry.sample_rate
    pairs = "".join(
        f'<div class="pair">{_clip(f"{system}: reconstruction", audio, entry)}'
        f"{_clip(f'{system}: difference', audio - entry.original, entry)}</div>"
        for system, audio in entry.reconstructions.items()
    )
    return (
        f'<section class="card"><h3>{_text(entry.title)}: {_text(entry.file)}</h3><p class="muted">'
        f"{_text(entry.row['system'])}{said}; {seconds:.1f} s from {entry.start:.1f} s on, around its worst second.</p>"
        f'<div class="listen"><div class="original"><div>{_clip("Original", entry.original, entry)}</div></div>'
        f"<div>{pairs}</div></div></section>"
    )


def _clip(title, audio, entry):
    drawn = picture.spectrogram(audio, entry.original, entry.sample_rate, f"spectrogram of {title}")
    sound = player(clips.player(audio, entry.sample_rate))
    return f'<figure><div class="held"><figcaption>{_text(title)}</figcaption>{sound}</div>{drawn}</figure>'


def _files(rows):
    shown = [name for name in _CHARTED if any(_known(row.get(name)) for row in rows)]
    ordered = sorted(rows, key=lambda row: row[_MAIN] if _known(row.get(_MAIN)) else math.inf)
    lines = [
        [
            f"{_text(row['file'])}<small>{_text(row['system'])}</small>",
            *(number(row[name]) if _known(row.get(name)) else "" for name in shown),
        ]
        for row in ordered[:_MAX_ROWS]
    ]
    more = f"; all {len(rows)} are in files.csv" if len(rows) > _MAX_ROWS else ""
    header = ["", *(f"{COLUMNS[name].label}{_arrow(name)}" for name in shown)]
    title = f"Every file, lowest SI-SDR first{more}"
    return f"<details><summary>{title}</summary>{table(lines, header, numbers=True)}</details>"


def _skipped(skipped):
    if not skipped:
        return ""
    lines = "".join(f"<li>{_text(name)}: {_text(reason)}</li>" for name, reason in skipped[:_MAX_ROWS])
    return f"<h2>Skipped: {len(skipped)}</h2><ul>{lines}</ul>"


def number(value: float) -> str:
    """Format a number for a table: about three digits, with commas between thousands."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    return f"{value:.3g}" if abs(value) < 1 else f"{value:.2f}" if abs(value) < 1000 else f"{value:,.0f}"


def _known(value):
    return value is not None and math.isfinite(value)
