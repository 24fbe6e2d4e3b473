"""HTML of a player that compares recordings on a common time axis."""

import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path

from audiovae_jax.evaluation.listening.listening import Recording
from audiovae_jax.evaluation.listening.portrait import FLOOR_DB
from audiovae_jax.html.document import escaped

SCRIPT = Path(__file__).with_name("player.js")
STYLE = Path(__file__).with_name("page.css")
_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)  # seconds between ticks
_MAX_TICKS = 8  # on the time axis
_PLAY = '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3 1l11 7-11 7z"/></svg>'
_PAUSE = '<svg viewBox="0 0 16 16" aria-hidden="true"><path d="M3 1h4v14H3zM9 1h4v14H9z"/></svg>'


def player(recordings: Sequence[Recording], caption: str, downloads: Mapping[str, Path], *, selected: int = 0) -> str:
    """Return the HTML of a player for comparing recordings.

    `player.js` implements the playback.

    Args:
      recordings: the recordings, in order.
      caption: plain text above the player.
      downloads: files for download, by label.
      selected: index of the recording that is selected first.
    """
    seconds = max(one.portrait.seconds for one in recordings)
    peak = max(1e-3, *(one.portrait.peak for one in recordings))
    pressed = ["true" if i == selected else "false" for i in range(len(recordings))]
    switch = "".join(
        f'<button type="button" data-lane="{i}" aria-pressed="{pressed[i]}">{_title(one)}</button>'
        for i, one in enumerate(recordings)
    )
    lanes = "".join(_lane(i, one, seconds, peak) for i, one in enumerate(recordings))
    links = "".join(
        f'<a href="{_address(path)}" download="{escaped(path.name)}">{escaped(label)}</a>'
        for label, path in downloads.items()
    )
    return f"""<section class="result"><h3>{escaped(caption)}</h3>
<audio-player data-seconds="{seconds:.6f}" tabindex="0" role="group" aria-label="{escaped(caption)}">
<div class="transport"><button type="button" class="play" aria-label="Play or pause">{_PLAY}{_PAUSE}</button>
<div class="switch" role="group" aria-label="Recording to play">{switch}</div>
<span class="time"><output>{_clock(0)}</output> / {_clock(seconds)}</span>
<button type="button" class="loop" hidden title="Remove the loop">Loop <span></span> ✕</button></div>
<div class="lanes">{lanes}<div class="axis">{_times(seconds)}</div><div class="selection" hidden></div>
<div class="playhead"></div></div>
<p class="note"><span>Click a picture to listen from there. Drag across it to loop a part.
<span class="keys">Keys: space, 1 to {len(recordings)}, ← →, [ and ] for a loop's ends, Esc.</span></span>
<span class="scale">{FLOOR_DB:.0f} dB<i></i>0 dB of full scale</span></p></audio-player>
<nav class="downloads" aria-label="Downloads"><span>Download</span>{links}</nav></section>"""


def _lane(index, one, seconds, peak):
    portrait, share = one.portrait, 100 * one.portrait.seconds / seconds
    marks = "".join(
        f'<i style="bottom:{100 * height:.2f}%">{hertz // 1000}k</i>'
        if hertz >= 1000
        else f'<i style="bottom:{100 * height:.2f}%">{hertz or "0 Hz"}</i>'
        for hertz, height in portrait.frequencies()
    )
    wave = portrait.wave(peak)
    width = wave.count("L") // 2
    title = _title(one)
    return f"""<figure class="lane" data-lane="{index}">
<figcaption>{title}</figcaption>
<div class="wave"><i style="bottom:100%">{peak:.2g}</i><i style="bottom:0">-{peak:.2g}</i>
<svg viewBox="0 -500 {width} 1000" preserveAspectRatio="none" style="width:{share:.3f}%" aria-hidden="true">
<path d="{wave}"/></svg></div>
<div class="spectrogram">{marks}<img src="{one.picture}" alt="spectrogram on a mel axis, {title}" draggable="false"
style="width:{share:.3f}%"></div><audio preload="metadata" src="{_address(one.path)}"></audio></figure>"""


def _title(one):
    return escaped(one.title[:1].upper() + one.title[1:])


def _times(seconds):
    step = next((step for step in _STEPS if seconds / step <= _MAX_TICKS), seconds)
    count = int(seconds / step)
    texts = ((i * step, f"{i * step:g} s" if seconds < 60 else _clock(i * step)[:-2]) for i in range(count + 1))
    return "".join(
        f'<i style="left:{100 * at / seconds:.3f}%">{text}</i>' for at, text in texts if at <= 0.92 * seconds
    )


def _clock(seconds):
    tenths = int(10 * seconds)
    return f"{tenths // 600}:{tenths // 10 % 60:02}.{tenths % 10}"


def _address(path):
    return escaped(f"gradio_api/file={urllib.parse.quote(os.fspath(path))}")
