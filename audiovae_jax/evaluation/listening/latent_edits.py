"""Edit latents: interpolate between two files, or shift single channels."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from audiovae_jax.errors import CheckpointError, DataError
from audiovae_jax.evaluation.listening.listening import Progress, open_audio, require_bounded
from audiovae_jax.inference.codec import Codec
from audiovae_jax.inference.latents import Latents

SUFFIX = ".safetensors"
MAX_TURN = 4.0  # in standard deviations of a channel
_BLOCK = 1 << 16  # frames per block of computations in double precision


def latents_of(
    codec: Codec, path: Path, folder: Path, progress: Progress, *, mix: bool = False
) -> tuple[Latents, Path]:
    """Return the latents of a file of audio or of latents, and the latents' path.

    Args:
      codec: the model.
      path: an audio file, or a `.safetensors` file written by this model's `encode`.
      folder: folder for the encoded latents.
      progress: called with the finished fraction and a description of the current stage.
      mix: see `Codec.encode`.

    Raises:
      DataError: the file is neither usable audio nor usable latents.
      CheckpointError: the latents were encoded by another model.
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
    """Check that an uploaded file contains this model's latents of one file.

    Only the header is read.

    Raises:
      DataError: the file is unusable, contains a batch, or is too large.
      CheckpointError: the latents were encoded by another model.
    """
    latents = Latents.describe(path)
    if latents.batch not in (None, 1):
        raise DataError(f"{path.name} contains a batch of latents; give those of one file")
    require_bounded(codec, path.name, latents)
    if latents.model != codec.fingerprint:
        raise CheckpointError(f'{path.name} were encoded by another model; select that model under "Model"')
    codec.require(latents, path.name)


def interpolate(codec: Codec, first: Latents, second: Latents, position: float) -> Latents:
    """Interpolate linearly between two latents, frame by frame.

    The result has the length of the shorter.

    Args:
      codec: the model of both.
      first, second: latents of one file each.
      position: 0 for the first, 1 for the second.

    Raises:
      DataError: the position is not a number from 0 to 1, a file is too short, or the channel counts are incompatible.
    """
    position = number(position, "the position", 0.0, 1.0)
    if len(first.z) != len(second.z) and 1 not in (len(first.z), len(second.z)):
        raise DataError(f"files of {len(first.z)} and {len(second.z)} channels cannot be interpolated")
    length = min(first.length, second.length * first.sample_rate // second.sample_rate)
    if length < 1:
        raise DataError("one of the two files is too short")
    channels = max(first.channels, second.channels)
    described = dataclasses.replace(first, length=length, channels=channels, batch=None, flat=False)
    require_bounded(codec, "the interpolation", described)
    frames = codec.frames_of(length, first.sample_rate)
    z = np.empty((max(len(first.z), len(second.z)), frames, first.z.shape[-1]), np.float32)
    for part in _parts(frames):
        a, b = (latents.z[:, part].astype(np.float64) for latents in (first, second))
        z[:, part] = a * (1 - position) + b * position  # in double precision, so that positions 0 and 1 are exact
    return dataclasses.replace(described, z=z)


def deviations(latents: Latents) -> np.ndarray:
    """Return each channel's standard deviation over the file, `[latent_dim]`."""
    z = latents.z
    mean, total = z.mean(axis=(0, 1), dtype=np.float64), np.zeros(z.shape[-1])
    for part in _parts(z.shape[1]):
        total += np.square(z[:, part] - mean).sum(axis=(0, 1))
    return np.sqrt(total / (z.shape[0] * z.shape[1]))


def turn(latents: Latents, turns: Mapping[Any, Any]) -> Latents:
    """Add constants to some channels of latents.

    Args:
      latents: latents of one file.
      turns: for each channel number, the amount to add in standard deviations of the channel over the file, -4 to 4.

    Raises:
      DataError: a channel does not exist, or an amount is invalid.
    """
    if not isinstance(turns, Mapping):
        raise DataError('turns must map channels to numbers, as in {"3": 1.5}')
    width, z = latents.z.shape[-1], latents.z.copy()
    if len(turns) > width:
        raise DataError(f"there are {len(turns)} turns for {width} latent channels")
    spread, channels = deviations(latents), {str(index): index for index in range(width)}
    for channel, amount in turns.items():
        index = channels.get(str(channel))  # only the canonical spelling, so that no channel is given twice
        if index is None:
            raise DataError(f"there is no latent channel {str(channel)[:50]!r}; channels are 0 to {width - 1}")
        z[..., index] += np.float32(number(amount, f"turns[{index}]", -MAX_TURN, MAX_TURN) * spread[index])
    return dataclasses.replace(latents, z=z)


def decode(codec: Codec, latents: Latents, folder: Path, name: str, progress: Progress) -> tuple[Path, Path]:
    """Write latents and their decoded audio.

    Returns:
      The paths of the audio and of the latents.
    """
    kept, audio = folder / f"{name}{SUFFIX}", folder / f"{name}.wav"
    latents.save(kept)
    codec.decode_file(kept, audio, progress=lambda share: progress(share, "decoding"))
    return audio, kept


def number(value: Any, what: str, low: float, high: float) -> float:
    """Return `value` as a float.

    Raises:
      DataError: it is not a number from `low` to `high`.
    """
    try:
        is_number = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    except OverflowError:  # an int too large for a float
        is_number = False
    if not is_number:
        raise DataError(f"{what} must be a number from {low:g} to {high:g}")
    if not low <= value <= high:
        raise DataError(f"{what} is {value:g}, but must be from {low:g} to {high:g}")
    return float(value)


def _parts(frames):
    return [slice(start, min(start + _BLOCK, frames)) for start in range(0, frames, _BLOCK)]
