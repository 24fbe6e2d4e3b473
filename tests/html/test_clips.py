"""Clips of audio for pages."""

import base64
import io

import numpy as np
import soundfile

from audiovae_jax.html import clips


def test_a_player_plays_what_it_was_given_up_to_full_scale():
    audio = np.array([[0.0, 0.5], [-0.25, 2.0], [-3.0, 0.125]], np.float32)
    kind, _, content = clips.player(audio, 8000).partition(",")
    assert kind == "data:audio/flac;base64"
    played, rate = soundfile.read(io.BytesIO(base64.b64decode(content)), dtype="float32")
    assert rate == 8000
    np.testing.assert_allclose(played, np.clip(audio, -1, 1), atol=2 / 2**15)
