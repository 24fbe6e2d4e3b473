"""Audio clips for HTML pages, as data URIs."""

import base64
import io

import numpy as np
import soundfile


def player(audio: np.ndarray, sample_rate: int) -> str:
    """Encode audio as a data URI of 16-bit FLAC, which browsers can play.

    Args:
      audio: `[T, C]` with one or two channels. Samples beyond full scale are clipped.
      sample_rate: in Hz.
    """
    content = io.BytesIO()
    soundfile.write(content, np.clip(audio, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return f"data:audio/flac;base64,{base64.b64encode(content.getvalue()).decode()}"
