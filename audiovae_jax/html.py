"""What a page is made of: its frame, tables, pictures and players, everything inside the one file."""

import base64
import html
from collections.abc import Iterable
from pathlib import Path

from audiovae_jax.errors import printable

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; color: #222 }
table { border-collapse: collapse; margin: 1em 0 } td, th { padding: .2em .8em; text-align: left; vertical-align: top;
border-bottom: 1px solid #ddd; white-space: pre-wrap; overflow-wrap: anywhere } td.n { text-align: right }
img { max-width: 100% } .warning { background: #fff3cd; padding: .3em .8em } .refusal { background: #f8d7da;
padding: .3em .8em; white-space: pre-wrap } audio { height: 2.2em; width: 12em }
svg text { font-size: 11px; fill: #555 }
.charts { display: flex; flex-wrap: wrap; gap: 1em } summary { font-size: 1.3em; cursor: pointer; margin: .6em 0 }
"""
# One player at a time, so that runs and steps can be compared by ear.
_SCRIPT = """
document.addEventListener("play", event => { for (const other of document.querySelectorAll("audio"))
if (other !== event.target) other.pause() }, true)
"""
# Whatever is in it, a page asks for nothing.
_POLICY = (
    "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)


def document(title: str, body: str, style: str = "") -> str:
    """A whole page.

    Args:
      title: plain text, which is the first heading too.
      body: HTML.
      style: CSS of the page's own.
    """
    title, script = escaped(title), f"<script>{_SCRIPT}</script>" if "<audio" in body else ""
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}"><link rel="icon" href="data:,">'
        f"<title>{title}</title><style>{_STYLE}{style}</style>{script}</head><body><h1>{title}</h1>{body}</body></html>\n"
    )


def escaped(value) -> str:
    """Anything as text that HTML takes literally."""
    return html.escape(printable(str(value)))


def table(rows: Iterable[Iterable[str]], header: Iterable[str] = ()) -> str:
    """A table of cells that are HTML already; `header` is plain text."""
    head = "".join(f"<th>{escaped(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<tr>{head}</tr>' if head else ''}{body}</table>"


def picture(content: bytes, description: str) -> str:
    """A PNG file as an image."""
    return f'<img alt="{escaped(description)}" src="data:image/png;base64,{base64.b64encode(content).decode()}">'


def player(wav: Path) -> str:
    """A player for a WAV file, which comes to lie within the page; its absence, where it cannot be read."""
    try:
        content = base64.b64encode(wav.read_bytes()).decode()
    except OSError as error:
        return escaped(f"not there: {error.strerror or error}")
    return f'<audio controls preload="metadata" src="data:audio/wav;base64,{content}"></audio>'
