"""Latents changed by hand: between two files, and channel by channel."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audiovae_jax.errors import DataError
from audiovae_jax.inference.codec import Codec
from audiovae_jax.inference.latents import Latents
from audiovae_jax.serving.listening import Progress, open_audio

SUFFIX = ".safetensors"
MOST_TURN = 4.0  # deviations of a channel


def latents_of(
    codec: Codec, path: Path, folder: Path, progress: Progress, *, mix: bool = False
) -> tuple[Latents, Path]:
    """The latents of an audio file, or of a file of latents, and the file that they are in.

    Args:
      codec: the model.
      path: of audio, or of a `.safetensors` file that this model's `encode` wrote.
      folder: for what is made.
      progress: called with the share that is done, and what is being done.
      mix: see `Codec.encode`.

    Raises:
      DataError: neither can be used.
      CheckpointError: the latents are of another model.
    """
    if path.suffix.lower() == SUFFIX:
        latents = Latents.load(path)
        codec.require(latents, path.name)
        if latents.batch not in (None, 1):
            raise DataError(f"{path.name} holds a batch of {latents.batch}; give latents of one file")
        return latents, path
    open_audio(path)
    target = folder / f"{path.stem}{SUFFIX}"
    codec.encode_file(path, target, lambda share: progress(share, "encoding"), mix=mix)
    return Latents.load(target), target


def interpolate(codec: Codec, first: Latents, second: Latents, position: float) -> Latents:
    """Latents on the straight line between two, frame by frame, as long as the shorter.

    Args:
      codec: of both.
      first, second: latents of one file each.
      position: 0 for the first, 1 for the second.

    Raises:
      DataError: no number from 0 to 1, or the channels of the two cannot be brought together.
    """
    position = number(position, "the position", 0.0, 1.0)
    if len(first.z) != len(second.z) and 1 not in (len(first.z), len(second.z)):
        raise DataError(f"{len(first.z)} and {len(second.z)} channels have nothing between them")
    length = min(first.length, second.length * first.sample_rate // second.sample_rate)
    if length < 1:
        raise DataError("one of the two is too short")
    frames = codec.frames_of(length, first.sample_rate)
    a, b = (latents.z[:, :frames] for latents in (first, second))
    # In double precision, so that both ends are exact.
    z = (a.astype(np.float64) * (1 - position) + b.astype(np.float64) * position).astype(np.float32)
    channels = max(first.channels, second.channels)
    return dataclasses.replace(first, z=z, length=length, channels=channels, batch=None, flat=False)


def deviations(latents: Latents) -> np.ndarray:
    """`[latent_dim]`: the standard deviation of each channel over the file."""
    return latents.z.std(axis=(0, 1), dtype=np.float64)


def turn(latents: Latents, turns: Mapping[Any, Any]) -> Latents:
    """Latents with constants added to some of their channels.

    Args:
      latents: of one file.
      turns: by the channel's number, how many of its standard deviations over the file are added, -4 to 4.

    Raises:
      DataError: there is no such channel, or the number is none.
    """
    if not isinstance(turns, Mapping):
        raise DataError('turns must be channels and numbers, as in {"3": 1.5}')
    width, z = latents.z.shape[-1], latents.z.copy()
    spread = deviations(latents)
    for channel, amount in turns.items():
        try:
            index = int(channel)
        except (TypeError, ValueError):
            index = -1
        if not 0 <= index < width:
            raise DataError(f"there is no latent channel {str(channel)[:50]!r}; they go from 0 to {width - 1}")
        z[..., index] += np.float32(
            number(amount, f"the turn of channel {index}", -MOST_TURN, MOST_TURN) * spread[index]
        )
    return dataclasses.replace(latents, z=z)


def decode(codec: Codec, latents: Latents, folder: Path, name: str, progress: Progress) -> tuple[Path, Path]:
    """Write latents, and the audio that they decode to; the paths of the audio and of the latents."""
    kept, audio = folder / f"{name}{SUFFIX}", folder / f"{name}.wav"
    latents.save(kept)
    codec.decode_file(kept, audio, progress=lambda share: progress(share, "decoding"))
    return audio, kept


def number(value: Any, what: str, low: float, high: float) -> float:
    """A number in a range, or a DataError."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise DataError(f"{what} must be a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise DataError(f"{what} is {value:g}, and must be from {low:g} to {high:g}")
    return float(value)
