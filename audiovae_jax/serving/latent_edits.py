"""Latents changed by hand: between two files, and channel by channel."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audiovae_jax.errors import CheckpointError, DataError
from audiovae_jax.inference.codec import Codec
from audiovae_jax.inference.latents import Latents
from audiovae_jax.serving.listening import Progress, open_audio, require_bounded

SUFFIX = ".safetensors"
MOST_TURN = 4.0  # deviations of a channel
_BLOCK = 1 << 16  # frames computed at once in double precision


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
        require_latents(codec, path)
        latents = Latents.load(path)
        codec.require(latents, path.name)
        return latents, path
    open_audio(codec, path, mix=mix)
    target = folder / f"{path.stem}{SUFFIX}"
    codec.encode_file(path, target, lambda share: progress(share, "encoding"), mix=mix)
    return Latents.load(target), target


def require_latents(codec: Codec, path: Path):
    """Raise unless an uploaded file says that it holds latents of one file which are not too much; `z` is not read.

    Raises:
      DataError: it cannot be used.
      CheckpointError: the latents are of another model.
    """
    latents = Latents.describe(path)
    if latents.batch not in (None, 1):
        raise DataError(f"{path.name} holds a batch of latents; give those of one file")
    require_bounded(codec, path.name, latents)
    if latents.model != codec.fingerprint:
        raise CheckpointError(f'{path.name} were encoded by another model; choose that one under "Model"')
    codec.require(latents, path.name)


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
    channels = max(first.channels, second.channels)
    described = dataclasses.replace(first, length=length, channels=channels, batch=None, flat=False)
    require_bounded(codec, "what lies between the two", described)
    frames = codec.frames_of(length, first.sample_rate)
    z = np.empty((max(len(first.z), len(second.z)), frames, first.z.shape[-1]), np.float32)
    for part in _parts(frames):
        a, b = (latents.z[:, part].astype(np.float64) for latents in (first, second))
        z[:, part] = a * (1 - position) + b * position  # in double precision, so that both ends are exact
    return dataclasses.replace(described, z=z)


def deviations(latents: Latents) -> np.ndarray:
    """`[latent_dim]`: the standard deviation of each channel over the file."""
    z = latents.z
    mean, total = z.mean(axis=(0, 1), dtype=np.float64), np.zeros(z.shape[-1])
    for part in _parts(z.shape[1]):
        total += np.square(z[:, part] - mean).sum(axis=(0, 1))
    return np.sqrt(total / (z.shape[0] * z.shape[1]))


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
    if len(turns) > width:
        raise DataError(f"there are {len(turns)} turns for {width} latent channels")
    spread, channels = deviations(latents), {str(index): index for index in range(width)}
    for channel, amount in turns.items():
        index = channels.get(str(channel))  # in one way of writing, so that none is given twice
        if index is None:
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
    try:
        is_number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an int beyond all floats
        is_number = False
    if not is_number:
        raise DataError(f"{what} must be a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise DataError(f"{what} is {value:g}, and must be from {low:g} to {high:g}")
    return float(value)


def _parts(frames):
    return [slice(start, min(start + _BLOCK, frames)) for start in range(0, frames, _BLOCK)]
