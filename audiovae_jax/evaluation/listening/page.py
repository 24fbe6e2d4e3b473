"""The page itself, in gradio: what is where, and which of the desk's functions each button asks for."""

import html
import math
import os
import secrets
import urllib.parse
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from audiovae_jax.data.audio.audio_file import EXTENSIONS
from audiovae_jax.errors import UserError, printable
from audiovae_jax.evaluation.listening import latent_edits
from audiovae_jax.evaluation.listening.listening import Heard
from audiovae_jax.evaluation.listening.service import Desk
from audiovae_jax.evaluation.metrics import COLUMNS
from audiovae_jax.evaluation.report import number
from audiovae_jax.html import escaped

TITLE = "audiovae_jax"
_FILES_KEPT = (3600, 24 * 3600)  # seconds: how often uploads are looked at, and how old they get
_WAITING = 32  # visitors' requests; more are told to come later
_WAITING_EACH = 2  # of one visitor
_WAITING_ADDRESS = 8  # of all visitors from one address, who may be one that calls himself many
_HEAVY = "model"  # name of the queue for what takes a model
_COLUMNS_OF_SLIDERS = 4
_STYLE = """
.before { color: var(--body-text-color-subdued) }
.heard { display: flex; flex-wrap: wrap; gap: 1em } .heard figure { margin: 0; flex: 1 1 20em; max-width: 32em }
.heard img, .heard audio { width: 100%; display: block } .heard figcaption { font-weight: 600; padding: .2em 0 }
.heard img { background: #fff; border-radius: 4px } .numbers { columns: 22em; column-gap: 2em; margin-top: 1em }
.numbers div { display: flex; justify-content: space-between; gap: 1em; break-inside: avoid; padding: .1em 0;
border-bottom: 1px solid var(--border-color-primary) } .numbers span:last-child { font-variant-numeric: tabular-nums }
"""
_BEFORE = '<p class="before">What is made is heard and seen here.</p>'
_ROOM = 90  # pixels, for progress to be seen in before there is anything
_HINT = "The channels that move most over this file come first; a turn of 1 adds one of its standard deviations."


def build(desk: Desk):
    """The page as `gradio.Blocks`; each thing it does is an endpoint of gradio's client too.

    Args:
      desk: what does the work.
    """
    import gradio as gr

    names = desk.models.names()
    heavy = {"concurrency_limit": 1, "concurrency_id": _HEAVY}
    private = {"api_visibility": "private", "show_progress": "hidden"}

    def models() -> list[str]:
        """The names of the models that are here."""
        return desk.models.names()

    def reconstruct(model, file, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """A file through a model and back: its metrics, and files of the reconstruction, difference and latents."""
        with _as_messages(gr):
            made = desk.reconstruct(_visitor(request), model, file, mix, _shown(progress))
        numbers = {name: None if not _known(value) else value for name, value in made.metrics.items()}
        return numbers, str(made.reconstruction), str(made.difference), str(made.latents)

    def encode(model, file, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """The latents of an audio file, as a .safetensors file."""
        with _as_messages(gr):
            return str(desk.encode(_visitor(request), model, file, mix, _shown(progress)))

    def decode(model, latents, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """The audio of a file of latents."""
        with _as_messages(gr):
            return str(desk.decode(_visitor(request), model, latents, _shown(progress)))

    def interpolate(model, first, second, position, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """What lies between two files' latents, from 0 for the first to 1 for the second: audio, and latents."""
        with _as_messages(gr):
            visitor = _visitor(request)
            return [*map(str, desk.interpolate(visitor, model, first, second, position, mix, _shown(progress)))]

    def turn_channels(model, file, turns, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """A file with {channel: standard deviations} added to its latents: audio, and latents."""
        with _as_messages(gr):
            return [*map(str, desk.turn_channels(_visitor(request), model, file, turns, mix, _shown(progress)))]

    def channels(model, file, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        with _as_messages(gr):
            return desk.channels(_visitor(request), model, file, mix, _shown(progress))

    def remembered(request: gr.Request, kind: str) -> Any:
        return desk.sessions.session(_visitor(request)).memory.get(kind)

    def show_reconstructed(request: gr.Request):
        made = remembered(request, "reconstructed")
        return "" if made is None else players(made.heard) + numbers_table(made.metrics)

    def show_turned(request: gr.Request):
        return players(filter(None, [remembered(request, "turned")]))

    def show_between(request: gr.Request):
        return players(filter(None, [remembered(request, "between")]))

    def leave(request: gr.Request):
        desk.sessions.forget(_visitor(request))

    def downloads(*labels):
        with gr.Row():
            return [gr.DownloadButton(f"Download {label}", elem_id=name, size="md") for label, name in labels]

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_FILES_KEPT) as page:
        gr.Markdown("# Listen to a model\nChoose a model and a file: hear, see and measure what it makes of it.")
        with gr.Row():
            with gr.Column():
                model = gr.Dropdown(
                    names, value=names[0], label="Model", elem_id="model", interactive=True, allow_custom_value=True
                )
                mix = gr.Checkbox(False, label="Mix other channel counts down or up to the model's")
                recorder = gr.Audio(
                    sources=["microphone"], type="filepath", format="wav", label="Record", elem_id="record"
                )
            file = gr.File(
                label="Audio, or latents of this model (.safetensors)", file_types=[*EXTENSIONS, latent_edits.SUFFIX],
                elem_id="file", height=220,
            )  # fmt: skip
        with gr.Tab("Listen"):
            button = gr.Button("Reconstruct", variant="primary", elem_id="reconstruct")
            heard = gr.HTML(_BEFORE, elem_id="heard", min_height=_ROOM)
            files = downloads(("reconstruction", "wav"), ("difference", "difference"), ("latents", "latents"))
            columns = gr.JSON(label="Metrics", visible=False)
            button.click(lambda: (_BEFORE, None, None, None), None, [heard, *files], queue=False, **private).then(
                reconstruct, [model, file, mix], [columns, *files], api_name="reconstruct", show_progress_on=heard,
                **heavy,
            ).success(show_reconstructed, None, heard, queue=False, **private)  # fmt: skip
        with gr.Tab("Turn channels"):
            known = gr.State([])
            ask = gr.Button("Show the latent channels of the file", elem_id="channels")
            turned = gr.HTML(_BEFORE, elem_id="turned_heard", min_height=_ROOM)
            turned_files = downloads(("audio", "turned"), ("latents", "turned_latents"))
            ask.click(channels, [model, file, mix], known, api_visibility="private", show_progress_on=turned, **heavy)
            file.change(lambda: [], None, known, queue=False, **private)
            model.change(lambda: [], None, known, queue=False, **private)

            @gr.render(inputs=known)
            def sliders(found):
                if not found:
                    return
                gr.Markdown(_HINT)
                decode_button = gr.Button("Decode", variant="primary", elem_id="turn")
                made, most = [], latent_edits.MOST_TURN
                for start in range(0, len(found), _COLUMNS_OF_SLIDERS):
                    with gr.Row():
                        made += [
                            gr.Slider(
                                -most,
                                most,
                                0,
                                label=f"channel {channel} (±{spread:.3g})",
                                step=0.1,
                                min_width=150,
                                elem_id=f"channel_{channel}",
                            )
                            for channel, spread in found[start : start + _COLUMNS_OF_SLIDERS]
                        ]

                def turn(model, file, mix, request: gr.Request, progress=gr.Progress(), *amounts):  # noqa: B008
                    turns = {channel: amount for (channel, _), amount in zip(found, amounts, strict=True) if amount}
                    return turn_channels(model, file, turns, mix, request, progress)

                decode_button.click(
                    turn, [model, file, mix, *made], turned_files, api_visibility="private", show_progress_on=turned,
                    **heavy,
                ).success(show_turned, None, turned, queue=False, **private)  # fmt: skip

        with gr.Tab("Interpolate"):
            with gr.Row():
                second = gr.File(
                    label="Another file, to go towards", file_types=[*EXTENSIONS, latent_edits.SUFFIX],
                    elem_id="second", height=160,
                )  # fmt: skip
                position = gr.Slider(0, 1, 0.5, step=0.01, label="From the first to the other", elem_id="position")
            between_button = gr.Button("Interpolate", variant="primary", elem_id="interpolate")
            between = gr.HTML(_BEFORE, elem_id="between_heard", min_height=_ROOM)
            between_files = downloads(("audio", "between"), ("latents", "between_latents"))
            between_button.click(
                interpolate, [model, file, second, position, mix], between_files, api_name="interpolate",
                show_progress_on=between, **heavy,
            ).success(show_between, None, between, queue=False, **private)  # fmt: skip
        # In the browser alone: of what reaches the server, gradio would convert all that is no WAV, by ffmpeg.
        recorder.change(None, recorder, file, js="recorded => recorded", preprocess=False, queue=False, **private)
        # Endpoints without a button.
        audio, latents = (gr.File(label=label, visible=False) for label in ("Audio", "Latents"))
        turns, listed = (gr.JSON(label=label, visible=False) for label in ("Turns", "Models"))
        trigger = gr.Button(visible=False)
        trigger.click(models, None, listed, api_name="models", queue=False)
        trigger.click(encode, [model, file, mix], latents, api_name="encode", **heavy)
        trigger.click(decode, [model, latents], audio, api_name="decode", **heavy)
        trigger.click(turn_channels, [model, file, turns, mix], [audio, latents], api_name="turn_channels", **heavy)
        page.load(lambda: gr.Dropdown(choices=desk.models.names()), None, model, queue=False, **private)
        page.unload(leave)
    page.queue(max_size=_WAITING, api_open=False)
    _share_queue(page)
    return page


def look(gr) -> dict[str, Any]:
    """What `launch` takes of how the page looks: fonts that every system has, so that none is fetched."""
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    return {"theme": gr.themes.Default(**fonts), "css": _STYLE}


def players(heard: Iterable[Heard]) -> str:
    """HTML of audio to play and to look at."""
    figures = "".join(
        f'<figure><figcaption>{escaped(one.title)}</figcaption><img src="{one.picture}" '
        f'alt="waveform and spectrogram, {escaped(one.title)}">'
        f'<audio controls preload="metadata" src="{_address(one.path)}"></audio></figure>'
        for one in heard
    )
    return f'<div class="heard">{figures}</div>' if figures else ""


def numbers_table(columns: Mapping[str, float | None]) -> str:
    """HTML of the metrics that have a value, with their definitions as hints."""
    lines = "".join(
        f'<div title="{escaped(COLUMNS[name].definition)}"><span>{escaped(COLUMNS[name].label)}</span>'
        f"<span>{_text(value)}</span></div>"
        for name, value in columns.items()
        if value is not None
    )
    return f'<div class="numbers">{lines}</div>'


def _share_queue(page):
    """Keep one visitor from taking all the places of a queue."""
    from gradio.route_utils import get_fn

    queue, push = page._queue, page._queue.push

    async def pushed(body, request, username):
        fn = get_fn(page, None, body)
        if fn.concurrency_id == _HEAVY:
            queue.create_event_queue_for_fn(fn)
            waiting = queue.event_queue_per_concurrency_id[_HEAVY].queue
            own = sum(event.session_hash == body.session_hash for event in waiting)
            near = sum(_host(event.request) == _host(request) for event in waiting)
            if own >= _WAITING_EACH or near >= _WAITING_ADDRESS:
                return (
                    False,
                    f"{own or near} requests of yours wait already; come again when they are done",
                    "queue_full",
                )
        return await push(body=body, request=request, username=username)

    queue.push = pushed


def _host(request):
    return request.client.host if request.client is not None else None


class _as_messages:
    """A user's error is a message in the page, as text, which stays until it is closed."""

    def __init__(self, gr):
        self._gr = gr

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, UserError):
            text = html.escape(printable(str(error)), quote=False)
            raise self._gr.Error(text, duration=None, print_exception=False) from None


def _visitor(request):
    return request.session_hash or secrets.token_hex(16)  # one who has no name gets nothing of before


def _shown(progress):
    return lambda share, text: progress(min(1.0, share), desc=text)


def _address(path: Path):
    return f"gradio_api/file={urllib.parse.quote(os.fspath(path))}"


def _known(value):
    return value is not None and math.isfinite(value)


def _text(value):
    return number(value) if math.isfinite(value) else ("∞" if value > 0 else "-∞")
