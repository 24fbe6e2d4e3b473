"""Validation of audio and latents that callers pass as arrays."""

from typing import Any

import numpy as np

from audiovae_jax.data.audio import stream
from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.errors import DataError, whole_number

MAX_RATE = 1 << 24  # Hz
_MAX_CHANNELS = 64


def as_stream(audio: Any, sample_rate: int) -> tuple[AudioStream, dict[str, Any]]:
    """Convert an array of audio to a stream.

    Args:
      audio: `[T]`, `[T, C]` or `[B, T, C]` floats.
      sample_rate: in Hz.

    Returns:
      `(stream, shape)`: a stream of `[T, batch * C]`, and the arguments `batch` and `flat` of `Latents`.

    Raises:
      DataError: the array is not valid audio.
    """
    audio = as_floats(audio, "audio", "floats in -1..1 (16-bit integers divided by 32768)")
    if audio.ndim not in (1, 2, 3) or 0 in audio.shape:
        raise DataError(f"audio must be [T], [T, C] or [B, T, C], not {list(audio.shape)}")
    sample_rate = whole_number(sample_rate, "sample_rate", DataError, most=MAX_RATE)
    if audio.ndim > 1 and audio.shape[-1] > _MAX_CHANNELS:
        raise DataError(
            f"audio of shape {list(audio.shape)} has {audio.shape[-1]} channels; the last axis must "
            "be the channels; transpose PyTorch's order [..., C, T] with audio.swapaxes(-2, -1)"
        )
    require_finite(audio, "audio")
    shape = {"batch": len(audio) if audio.ndim == 3 else None, "flat": audio.ndim == 1}
    audio = audio[:, None] if audio.ndim == 1 else audio
    if audio.ndim == 3:
        audio = np.moveaxis(audio, 0, 1).reshape(audio.shape[1], -1)
    return stream.of_array(audio, sample_rate), shape


def as_floats(values: Any, what: str, wanted: str) -> np.ndarray:
    """Return an array as float32; values beyond its range become infinite.

    Args:
      values: an array, or a value that numpy can convert to one.
      what: name of the array, for the error.
      wanted: description of a valid array, for the error.

    Raises:
      DataError: the values are not an array of floats.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataError(f"{what} cannot be converted to one array: {error}") from error
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.name != "bfloat16":
        raise DataError(f"{what} is {array.dtype}; give {wanted}")
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def require_finite(array: np.ndarray, what: str):
    """Raise DataError unless all values are finite."""
    if not np.isfinite(array).all():
        raise DataError(f"{what} must not contain NaN or infinite values, or values too large for float32")
