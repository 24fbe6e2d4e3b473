"""Parts of a self-contained HTML page: frame, headline numbers, tables, players."""

import base64
import html
import re
from collections.abc import Iterable
from pathlib import Path

from audiovae_jax.errors import printable

# (light mode, dark mode) by name. Pages use them as CSS variables, drawings as Matplotlib colours.
COLOURS = {
    "page": ("#f8f9fa", "#14171b"),
    "card": ("#ffffff", "#1d2127"),
    "line": ("#d9dee4", "#383f49"),
    "ink": ("#1b2026", "#e7eaee"),
    "muted": ("#59636f", "#a0aab6"),
    "warning": ("#fff1cc", "#40330d"),
    "refusal": ("#fbdcdf", "#4d1f25"),
}
SERIES = (
    ("#1766b5", "#6cb0f5"),
    ("#cf4a0a", "#ff9a62"),
    ("#0b8458", "#4fcf9f"),
    ("#9a3fa8", "#d792e2"),
    ("#8a6d00", "#dcb93c"),
    ("#c0275a", "#f77fa8"),
    ("#0a7d8c", "#55c8d6"),
    ("#6a5a50", "#bba99d"),
)
_VARIABLES = COLOURS | {f"series-{i}": colours for i, colours in enumerate(SERIES)}
_STYLE = """
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 80rem; padding: 2rem 1.25rem 4rem;
  color: var(--ink); background: var(--page) }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 1rem; overflow-wrap: anywhere }
h2 { font-size: 1.3rem; margin: 2.75rem 0 .75rem } h3 { font-size: 1.05rem; margin: 0 0 .5rem; overflow-wrap: anywhere }
p { margin: .5rem 0; max-width: 48rem; overflow-wrap: anywhere } .lead { font-size: 1.15rem }
small, figcaption small, .muted { color: var(--muted); font-size: .8125rem; font-weight: 400 }
small { display: block } .warning, .refusal { padding: .5rem .9rem; border-radius: .5rem; white-space: pre-wrap }
.warning { background: var(--warning) } .refusal { background: var(--refusal) }
.card { background: var(--card); border: 1px solid var(--line); border-radius: .75rem; padding: 1rem 1.25rem;
  margin: 1rem 0 }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(11rem, 1fr)); gap: 1rem; margin: 1.25rem 0 }
.facts .card { margin: 0; max-width: 24rem }
.facts b { display: block; font-size: 1.75rem; line-height: 1.25; overflow-wrap: anywhere }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1.5rem }
figure { margin: 0; min-width: 0 } figcaption { font-weight: 600; overflow-wrap: anywhere; margin-bottom: .25rem }
figcaption small { display: inline; margin-left: .4rem }
svg { display: block; width: 100%; height: auto; overflow: visible }
audio { display: block; width: 100%; min-width: 15rem; height: 2.75rem } a { color: inherit }
.wide { overflow-x: auto } table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums }
th, td { padding: .4rem .9rem .4rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }
th { color: var(--muted); font-size: .8125rem; font-weight: 600 } td { overflow-wrap: anywhere; white-space: pre-wrap }
td:first-child { overflow-wrap: normal } table.numbers :is(th, td:not(:first-child)) { white-space: nowrap }
table.numbers:not(:has(th)) td:first-child { overflow-wrap: anywhere }
table.numbers :is(th, td):not(:first-child) { text-align: right }
tr:has(audio) td { vertical-align: middle; border: 0; padding: .2rem .9rem .2rem 0 }
details { margin: 1rem 0 } summary { cursor: pointer; font-weight: 600; margin: .75rem 0 }
.key { display: inline-block; width: .7em; height: .7em; border-radius: 50%; margin-right: .4em }
.legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem }
@media (max-width: 40rem) {
  body { padding: 1.25rem 1rem 3rem } .facts { gap: .6rem; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)) }
  .facts b { font-size: 1.35rem } .facts .card { padding: .75rem .9rem }
  table:has(th) tr { display: block; border-bottom: 1px solid var(--line); padding: .5rem 0 }
  table:has(th) td { display: block; border: 0; padding: .1rem 0 } td:first-child { font-weight: 600 }
  table:has(th) :is(td:empty, tr:has(th)) { display: none }
  td[data-label]::before { content: attr(data-label); display: inline-block; min-width: 8rem; margin-right: .5rem;
    color: var(--muted); font-size: .8125rem; text-align: left; text-indent: 0 }
  table:not(.numbers) td[data-label]:not(:has(audio)) { padding-left: 8.5rem; text-indent: -8.5rem }
  table.numbers td[data-label]::before { float: left }
}
"""
# Only one player plays at a time. A second player in the same section continues at the first one's position.
_SCRIPT = """
document.addEventListener("play", event => { for (const other of document.querySelectorAll("audio"))
if (other !== event.target && !other.paused) { other.pause(); const [from, to] = [other, event.target];
if (from.closest("section") === to.closest("section")) to.currentTime = from.currentTime } }, true)
"""
# A page makes no network requests, even if its content asks for some.
_POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


def document(title: str, body: str, style: str = "") -> str:
    """Return a complete HTML page, in light or dark mode as the reader's system.

    Args:
      title: title and first heading, as plain text.
      body: HTML below the heading.
      style: additional CSS.
    """
    heading, title, script = title, escaped(title), f"<script>{_SCRIPT}</script>" if "<audio" in body else ""
    light, dark = ("".join(f"--{name}:{pair[i]};" for name, pair in _VARIABLES.items()) for i in range(2))
    colours = f":root{{color-scheme:light dark;{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}"
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><link rel="icon" href="data:,">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{colours}{_STYLE}{style}</style>{script}</head>"
        f"<body><h1>{breakable(heading)}</h1>{body}</body></html>\n"
    )


def escaped(value) -> str:
    """Return any value as text, escaped for HTML."""
    return html.escape(printable(str(value)))


def breakable(name: str) -> str:
    """Return a dotted name or a path as HTML with places for line breaks.

    Lines may break after dots, underscores and slashes.
    """
    return re.sub(r"([._/])(?=\w)", r"\1<wbr>", escaped(name))


def facts(numbers: Iterable[tuple[str, str, str]]) -> str:
    """Return headline numbers as cards.

    Args:
      numbers: `(label, value, note)` per card, as plain text.
    """
    cards = (
        f'<div class="card"><span class="muted">{escaped(label)}</span><b>{escaped(value)}</b>'
        f"<small>{escaped(note)}</small></div>"
        for label, value, note in numbers
    )
    return f'<div class="facts">{"".join(cards)}</div>'


def table(rows: Iterable[Iterable[str]], header: Iterable[str] = (), *, numbers: bool = False) -> str:
    """Return a table whose rows become blocks on narrow screens.

    Args:
      rows: cells of each row, as HTML. The first cell names its row.
      header: a label per column, as plain text.
      numbers: whether to right-align all columns but the first.
    """
    header = [escaped(cell) for cell in header]
    labels = [f' data-label="{name}"' if i and name else "" for i, name in enumerate(header)]
    lines = [f"<tr>{''.join(f'<th>{name}</th>' for name in header)}</tr>"] if header else []
    for row in rows:
        cells = list(row)
        attributes = labels or [""] * len(cells)
        lines.append(f"<tr>{''.join(f'<td{a}>{cell}</td>' for a, cell in zip(attributes, cells, strict=True))}</tr>")
    return f'<div class="wide"><table{" class=numbers" if numbers else ""}>{"".join(lines)}</table></div>'


def player(uri: str) -> str:
    """Return an audio player.

    Args:
      uri: the audio as a data URI.
    """
    return f'<audio controls preload="metadata" src="{uri}"></audio>'


def wav_player(path: Path) -> str:
    """Return a player with an embedded WAV file, or the reason if it is unreadable."""
    try:
        return player(f"data:audio/wav;base64,{base64.b64encode(path.read_bytes()).decode()}")
    except OSError as error:
        return escaped(f"not there: {error.strerror or error}")
