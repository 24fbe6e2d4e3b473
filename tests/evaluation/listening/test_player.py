"""The player's HTML: its recordings and their labels."""

import re
from pathlib import Path

import numpy as np
import pytest

from audiovae_jax.data.audio import stream
from audiovae_jax.evaluation.listening.listening import Recording
from audiovae_jax.evaluation.listening.player import SCRIPT, STYLE, player
from audiovae_jax.evaluation.listening.portrait import Portrait

RATE = 8000


def recording(title, seconds=1.0, level=0.5):
    audio = np.full((int(seconds * RATE), 1), level, np.float32)
    portrait = Portrait(stream.of_array(audio, RATE))
    portrait.add(audio)
    return Recording(title, Path(f"/page/{title} 1.wav"), portrait)


def test_the_element_carries_its_recordings_in_order():
    page = player([recording(title) for title in ("original", "reconstruction", "difference")], "song", {})
    sources = re.findall(r'<audio [^>]*src="([^"]*)"', page)
    assert sources == [
        f"gradio_api/file=/page/{title}%201.wav" for title in ("original", "reconstruction", "difference")
    ]
    buttons = re.findall(r'data-lane="(\d)" aria-pressed="(\w+)">(\w+)<', page)
    assert buttons == [("0", "true", "Original"), ("1", "false", "Reconstruction"), ("2", "false", "Difference")]
    assert page.count('src="data:image/png;base64,') == 3
    assert page.count("<audio-player") == 1


def test_another_recording_may_be_the_first_that_is_heard():
    page = player([recording("untouched"), recording("edited")], "song", {}, selected=1)
    assert re.findall(r'aria-pressed="(\w+)"', page) == ["false", "true"]


def test_recordings_share_the_axes():
    page = player([recording("long", 4.0, 0.5), recording("short", 1.0, 0.25)], "song", {})
    assert re.findall(r'<img [^>]*style="width:([\d.]+)%"', page) == ["100.000", "25.000"]
    assert 'data-seconds="4.000000"' in page
    tops = [int(re.search(r"M0 (-?\d+)", path)[1]) for path in re.findall(r'<path d="(M0 [^"]*)"', page)]
    assert tops == [-500, -250]
    assert ">3 s<" in page


@pytest.mark.parametrize("text", ["<img src=x onerror=alert(1)>", '"><script>alert(1)</script>'])
def test_names_are_text(text):
    page = player([recording("original")], text, {text: Path("/page") / "a\"b'.wav"})
    assert "<img src=x" not in page
    assert "<script" not in page
    assert 'download="a&quot;b&#x27;.wav"' in page


def test_the_script_and_the_style_load_nothing():
    for path in (SCRIPT, STYLE):
        text = path.read_text()
        assert "http" not in text.replace("http-equiv", "")
        assert not re.search(r"\b(fetch|import|url|XMLHttpRequest|eval)\s*\(|@import|<", re.sub(r" <=? ", "", text))
