"""The gradio page: its layout, and the service's functions behind its buttons."""

import html
import math
import secrets
from pathlib import Path
from typing import Any

from audiovae_jax.errors import UserError, printable
from audiovae_jax.evaluation.listening import latent_edits
from audiovae_jax.evaluation.listening.listening import MIX
from audiovae_jax.evaluation.listening.player import SCRIPT, STYLE, player
from audiovae_jax.evaluation.listening.scorecard import scorecard
from audiovae_jax.evaluation.listening.service import FILE, SECOND, Service

TITLE = "audiovae_jax"
_FILES_KEPT = (3600, 24 * 3600)  # seconds between checks of uploads, and their maximum age in seconds
_WAITING = 32  # maximum number of queued requests
_WAITING_EACH = 2  # per visitor
_WAITING_ADDRESS = 8  # per address, since one client may pose as many visitors
_HEAVY = "model"  # name of the queue for requests that run a model
_SLIDERS_SHOWN = 8  # the channels with the largest deviations; the others are collapsed
_SLIDERS_IN_ROW = 4
_EMPTY = {
    "listen": "Choose a file, or use the example clip, then reconstruct it.",
    "edit": "Load the latents of the file (audio or .safetensors). Each channel gets a slider.",
    "decode": "Move some sliders, then decode. The edited latents are compared with the original ones.",
    "between": "Choose a second file and a position between the two.",
}
_ROOM = 90  # minimum height in pixels, so that progress is visible before the first result
_HINT = "Each slider adds standard deviations (SD) of its channel. Channels with the largest SD come first."


def build(service: Service):
    """Build the page as `gradio.Blocks`.

    Each function is also an endpoint for gradio's client.

    Args:
      service: the service that computes the results.
    """
    import gradio as gr

    names = service.models.names()
    heavy = {"concurrency_limit": 1, "concurrency_id": _HEAVY}
    private = {"api_visibility": "private", "show_progress": "hidden"}

    def models() -> list[str]:
        """List the names of the models."""
        return service.models.names()

    def reconstruct(model, file, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """Reconstruct a file. Return metrics, reconstruction, difference and latents."""
        with _as_messages(gr):
            made = service.reconstruct(_visitor(request), model, file, mix, _shown(progress))
        numbers = {name: None if not _known(value) else value for name, value in made.metrics.items()}
        return numbers, str(made.reconstruction), str(made.difference), str(made.latents)

    def encode(model, file, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """Encode an audio file. Return its latents as a .safetensors file."""
        with _as_messages(gr):
            return str(service.encode(_visitor(request), model, file, mix, _shown(progress)))

    def decode(model, latents, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """Decode a file of latents. Return the audio."""
        with _as_messages(gr):
            return str(service.decode(_visitor(request), model, latents, _shown(progress)))

    def interpolate(model, first, second, position, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """Interpolate two files' latents (0: first, 1: second). Return audio and latents."""
        with _as_messages(gr):
            visitor = _visitor(request)
            return [*map(str, service.interpolate(visitor, model, first, second, position, mix, _shown(progress)))]

    def turn_channels(model, file, turns, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        """Shift latents by {channel: standard deviations}. Return audio and latents."""
        with _as_messages(gr):
            return [*map(str, service.turn_channels(_visitor(request), model, file, turns, mix, _shown(progress)))]

    def channels(model, file, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        with _as_messages(gr):
            return service.channels(_visitor(request), model, file, mix, _shown(progress)), empty("decode")

    def show_reconstructed(model, file, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        with _as_messages(gr):
            made = service.reconstruct(_visitor(request), model, file, mix, _shown(progress))
        downloads = {"reconstruction": made.reconstruction, "difference": made.difference, "latents": made.latents}
        return player(made.recordings, f"{Path(file).name} through {model}", downloads) + scorecard(made.metrics)

    def show_edited(model, file, turns, mix, request, progress):
        visitor, shown = _visitor(request), _shown(progress)
        with _as_messages(gr):
            audio, latents = service.turn_channels(
                visitor, model, file, turns, mix, lambda s, text: shown(0.5 * s, text)
            )
            recordings = [
                service.untouched(visitor, model, file, mix, lambda s, text: shown(0.5 + 0.5 * s, text)),
                service.sessions.session(visitor).memory["turned"],
            ]
        edits = ", ".join(f"channel {channel} {amount:+g} SD" for channel, amount in turns.items()) or "nothing edited"
        caption = f"{Path(file).name} through {model}: {edits}"
        return player(recordings, caption, {"edited audio": audio, "edited latents": latents}, selected=1)

    def show_between(model, file, other, position, mix, request: gr.Request, progress=gr.Progress()):  # noqa: B008
        visitor, shown = _visitor(request), _shown(progress)
        with _as_messages(gr):
            audio, latents = service.interpolate(
                visitor, model, file, other, position, mix, lambda s, text: shown(0.6 * s, text)
            )
            recordings = [
                service.source(visitor, model, file, "first", lambda s, text: shown(0.6 + 0.2 * s, text)),
                service.sessions.session(visitor).memory["between"],
                service.source(visitor, model, other, "second", lambda s, text: shown(0.8 + 0.2 * s, text)),
            ]
        caption = f"From {Path(file).name} to {Path(other).name} at {position:.2f}, through {model}"
        return player(recordings, caption, {"audio between": audio, "latents between": latents}, selected=1)

    def leave(request: gr.Request):
        service.sessions.forget(_visitor(request))

    def button(text, name, **options):
        return gr.Button(text, elem_id=name, scale=0, min_width=150, **options)

    def file_input(label, name, number):
        # Without types, by which gradio refuses files with a traceback in the log. The service tells what a file is.
        chosen = gr.File(label=label, elem_id=name, height=140)
        with gr.Row():
            example = button("Use the example clip", f"{name}_example", size="sm")
            record = button("Record", f"{name}_record", size="sm")
        recorder = gr.Audio(sources=["microphone"], type="filepath", format="wav", label="Record", visible=False)
        example.click(lambda: str(service.example(number)), None, chosen, queue=False, **private)
        record.click(lambda: gr.Audio(visible=True), None, recorder, queue=False, **private)
        # Runs in the browser only. On the server gradio would convert everything but WAV with ffmpeg.
        recorder.change(None, recorder, chosen, js="recorded => recorded", preprocess=False, queue=False, **private)
        return chosen

    def empty(kind):
        return f'<p class="empty">{_EMPTY[kind]}</p>'

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=_FILES_KEPT) as page:
        gr.Markdown("# Listen to a model\nHear, see and measure a model's reconstruction of your audio.")
        with gr.Row():
            with gr.Column(min_width=280):
                model = gr.Dropdown(
                    names, value=names[0], label="Model", elem_id="model", interactive=True, allow_custom_value=True
                )
                mix = gr.Checkbox(False, label=MIX, info="For files whose number of channels differs from the model's.")
            with gr.Column(min_width=280):
                file = file_input(FILE, "file", 0)
        with gr.Tab("Listen"):
            with gr.Row():
                reconstruct_button = button("Reconstruct", "reconstruct", variant="primary")
            recordings = gr.HTML(empty("listen"), elem_id="recordings", min_height=_ROOM, apply_default_css=False)
            reconstruct_button.click(
                show_reconstructed, [model, file, mix], recordings, api_visibility="private", **heavy
            )  # fmt: skip
        with gr.Tab("Edit latents"):
            known = gr.State([])
            with gr.Row():
                ask = button("Load latents", "channels")

            @gr.render(inputs=known)
            def sliders(found):
                if not found:
                    return
                gr.Markdown(_HINT)
                made, most = [], latent_edits.MAX_TURN
                shown, folded = found[:_SLIDERS_SHOWN], found[_SLIDERS_SHOWN:]
                for group in filter(None, (shown, folded)):
                    with gr.Accordion(f"{len(folded)} more channels", open=False) if group is folded else gr.Group():
                        for start in range(0, len(group), _SLIDERS_IN_ROW):
                            with gr.Row():
                                made += [
                                    gr.Slider(
                                        -most, most, 0, label=f"Channel {channel}", info=f"SD {spread:.3g}", step=0.1,
                                        min_width=150, elem_id=f"channel_{channel}",
                                    )
                                    for channel, spread in group[start : start + _SLIDERS_IN_ROW]
                                ]  # fmt: skip
                with gr.Row():
                    decode_button = button("Decode", "turn", variant="primary")
                    reset = button("Reset all", "reset")
                reset.click(lambda: dict.fromkeys(made, 0), None, made, queue=False, **private)

                def edit(model, file, mix, request: gr.Request, progress=gr.Progress(), *amounts):  # noqa: B008
                    turns = {channel: amount for (channel, _), amount in zip(found, amounts, strict=True) if amount}
                    return show_edited(model, file, turns, mix, request, progress)

                decode_button.click(edit, [model, file, mix, *made], edited, api_visibility="private", **heavy)

            edited = gr.HTML(empty("edit"), elem_id="turned_heard", min_height=_ROOM, apply_default_css=False)
            ask.click(
                channels,
                [model, file, mix],
                [known, edited],
                api_visibility="private",
                show_progress_on=edited,
                **heavy,
            )
        with gr.Tab("Interpolate"):
            with gr.Row():
                with gr.Column(min_width=280):
                    second = file_input(SECOND, "second", 1)
                position = gr.Slider(
                    0, 1, 0.5, step=0.01, label="Position", info="0 is the first file, 1 the second.",
                    elem_id="position", min_width=280,
                )  # fmt: skip
            with gr.Row():
                between_button = button("Interpolate", "interpolate", variant="primary")
            between = gr.HTML(empty("between"), elem_id="between_heard", min_height=_ROOM, apply_default_css=False)
            between_button.click(
                show_between, [model, file, second, position, mix], between, api_visibility="private", **heavy
            )
        # Results belong to the selected model and files, so a new selection clears them.
        gr.on(
            [model.change, file.change, mix.change], lambda: ([], *map(empty, ("listen", "edit", "between"))), None,
            [known, recordings, edited, between], queue=False, **private,
        )  # fmt: skip
        second.change(lambda: empty("between"), None, between, queue=False, **private)
        # Endpoints without a button.
        audio, latents, other = (gr.File(label=label, visible=False) for label in ("Audio", "Latents", "Difference"))
        turns, listed, columns = (gr.JSON(label=label, visible=False) for label in ("Turns", "Models", "Metrics"))
        trigger = gr.Button(visible=False)
        trigger.click(models, None, listed, api_name="models", queue=False)
        trigger.click(
            reconstruct, [model, file, mix], [columns, audio, other, latents], api_name="reconstruct", **heavy
        )
        trigger.click(
            interpolate, [model, file, second, position, mix], [audio, latents], api_name="interpolate", **heavy
        )
        trigger.click(encode, [model, file, mix], latents, api_name="encode", **heavy)
        trigger.click(decode, [model, latents], audio, api_name="decode", **heavy)
        trigger.click(turn_channels, [model, file, turns, mix], [audio, latents], api_name="turn_channels", **heavy)
        page.load(lambda: gr.Dropdown(choices=service.models.names()), None, model, queue=False, **private)
        page.unload(leave)
    page.queue(max_size=_WAITING, api_open=False)
    _share_queue(page)
    return page


def appearance(gr) -> dict[str, Any]:
    """Return the arguments of `launch` for the page's appearance.

    System fonts avoid downloads.
    """
    fonts = {"font": ["system-ui", "sans-serif"], "font_mono": ["ui-monospace", "monospace"]}
    theme = gr.themes.Default(primary_hue="indigo", neutral_hue="slate", **fonts)
    theme.set(body_text_color_subdued="*neutral_500", body_text_color_subdued_dark="*neutral_400")
    return {"theme": theme, "css": STYLE.read_text(), "head": f"<script type=module>{SCRIPT.read_text()}</script>"}


def _share_queue(page):
    """Prevent one visitor from filling the queue."""
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
                    f"{own or near} of your requests are waiting already; try again when they are done",
                    "queue_full",
                )
        return await push(body=body, request=request, username=username)

    queue.push = pushed


def _host(request):
    return request.client.host if request.client is not None else None


class _as_messages:
    """A context that shows a `UserError` as a message in the page.

    The message stays until the visitor closes it.
    """

    def __init__(self, gr):
        self._gr = gr

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, UserError):
            text = html.escape(printable(str(error)), quote=False)
            raise self._gr.Error(text, duration=None, print_exception=False) from None


def _visitor(request):
    return request.session_hash or secrets.token_hex(16)  # a client without a session shares no results


def _shown(progress):
    return lambda share, text: progress(min(1.0, share), desc=text)


def _known(value):
    return value is not None and math.isfinite(value)
