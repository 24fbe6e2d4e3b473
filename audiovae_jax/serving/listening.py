"""What the page computes: a file through a model, heard, seen and measured, piece by piece, whatever its length."""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audiovae_jax.data import audio_file, stream
from audiovae_jax.data.stream import AudioStream
from audiovae_jax.errors import DataError
from audiovae_jax.evaluation import metrics
from audiovae_jax.evaluation.latents import LatentStatistics
from audiovae_jax.inference.codec import Codec
from audiovae_jax.serving.portrait import Portrait

MIX = "Mix channels to fit the model"  # the control that asks for it
Progress = Callable[[float, str], None]
_MOST_HOURS = 12  # of a file
_MOST_CHANNELS = 16
_MOST_VALUES = 1 << 31  # over its channels, at its rate and at the model's: six hours of stereo at 48 kHz
_PLAYED = (".wav", ".flac", ".mp3", ".ogg", ".opus")  # by browsers, as they are
_THREADS = 4  # to measure in


@dataclasses.dataclass(frozen=True)
class Heard:
    """Audio to play and to look at.

    Attributes:
      title: what it is.
      path: of a file that browsers play.
      portrait: what it looks like.
    """

    title: str
    path: Path
    portrait: Portrait

    @property
    def picture(self) -> str:
        """A data URI of its spectrogram."""
        return self.portrait.spectrogram()


@dataclasses.dataclass(frozen=True)
class Reconstructed:
    """A file through a model and back.

    Attributes:
      heard: original, reconstruction and difference.
      metrics: columns of the evaluation by name, `metrics.COLUMNS`.
      reconstruction, difference: float WAVs.
      latents: a `.safetensors` file.
    """

    heard: tuple[Heard, ...]
    metrics: dict[str, float | None]
    reconstruction: Path
    difference: Path
    latents: Path


def open_audio(codec: Codec, path: Path, *, mix: bool = False) -> AudioStream:
    """The audio of an uploaded file.

    Args:
      codec: the model.
      path: of the file.
      mix: see `Codec.encode`.

    Raises:
      DataError: it cannot be used, is too long, or has other channels than the model and is not to be mixed.
    """
    source, wanted = stream.open_file(path), codec.model.in_channels
    require_bounded(codec, path.name, source)
    if not mix and wanted != 1 and source.channels not in (1, wanted):
        raise DataError(
            f'{path.name} has {source.channels} channels and the model takes {wanted}; tick "{MIX}" to mix them'
        )
    return source


def require_bounded(codec: Codec, name: str, audio: Any):
    """Raise DataError if audio is more than this page computes.

    A small file can hold much silence, and little audio of a low rate is much at the model's.

    Args:
      codec: the model.
      name: of the file, for the error.
      audio: what has a `sample_rate` in Hz, a `length` in samples and `channels`, whole numbers of any size.
    """
    rate, length, channels = audio.sample_rate, audio.length, audio.channels
    low, high = audio_file.RATES
    if not low <= rate <= high:
        raise DataError(f"{name}: its sample rate is none of sound ({low} to {high} Hz)")
    computed = stream.resampled_length(length, rate, codec.sample_rate) * max(channels, codec.model.in_channels)
    is_long = length > _MOST_HOURS * 3600 * rate or max(length * channels, computed) > _MOST_VALUES
    if is_long or channels > _MOST_CHANNELS:
        hours, channels = min(length, 10**15) / rate / 3600, min(channels, 10**6)
        raise DataError(
            f"{name}: {hours:.1f} hours of {channels} channels are too much for this page, which takes up to "
            f"{_MOST_HOURS} hours, {_MOST_CHANNELS} channels and {_MOST_VALUES} samples over all channels"
        )


def reconstruct(codec: Codec, path: Path, folder: Path, progress: Progress, *, mix: bool = False) -> Reconstructed:
    """A file through a model and back; the files are those that `reconstruct` and `encode` make.

    The audio is read in blocks and not kept; the latents are, which are a small part of it.

    Args:
      codec: the model.
      path: the audio.
      folder: for what is made.
      progress: called with the share that is done, and what is being done.
      mix: see `Codec.encode`.

    Raises:
      DataError: audio that cannot be used.
    """
    source, name = open_audio(codec, path, mix=mix), path.stem
    blocks, statistics = [], LatentStatistics(codec.model.latent_dim)

    def watch(posterior):
        blocks.append(posterior.z)
        statistics.add(posterior)

    made = codec.reconstruct_stream(source, mix=mix, watch=watch)
    reconstruction = folder / f"{name}.reconstruction.wav"
    stream.write(made, reconstruction, lambda share: progress(0.6 * share, "encoding and decoding"))
    latents = folder / f"{name}.safetensors"
    codec.latents_of(blocks, source, made.channels).save(latents)
    del blocks[:]
    estimate, reference = stream.open_file(reconstruction), source
    if made.channels != source.channels:
        reference = source.map(lambda block: audio_file.adapt_channels(block, made.channels), made.channels)
    difference = folder / f"{name}.difference.wav"
    portraits = _subtract(reference, estimate, difference, lambda share: progress(0.6 + 0.1 * share, "subtracting"))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        columns, _ = metrics.measure(
            reference, estimate, pool=pool, progress=lambda share: progress(0.7 + 0.3 * share, "measuring")
        )
    columns |= statistics.columns(source.length / source.sample_rate)
    titles = ("original", "reconstruction", "difference")
    paths = (playable(source, path, folder), reconstruction, difference)
    heard = map(Heard, titles, paths, portraits)
    return Reconstructed(tuple(heard), columns, reconstruction, difference, latents)


def listen(title: str, path: Path, folder: Path, progress: Progress) -> Heard:
    """A file to play, with its picture.

    Args:
      title: what it is.
      path: of the file.
      folder: for what browsers play of it, see `playable`.
      progress: called with the share that is done, and what is being done.

    Raises:
      DataError: audio that cannot be used.
    """
    source = stream.open_file(path)
    portrait = Portrait(source)
    for block in stream.watched(source.blocks(), source.length, lambda share: progress(share, "drawing")):
        portrait.add(block)
    return Heard(title, playable(source, path, folder), portrait)


def playable(source: AudioStream, path: Path, folder: Path) -> Path:
    """The file itself, or what browsers play of it."""
    if path.suffix.lower() in _PLAYED:
        return path
    copy = folder / f"{path.stem}.original.wav"
    stream.write(source, copy)
    return copy


def _subtract(reference, estimate, path, progress):
    """Write `reference - estimate`; pictures of both and of it."""
    portraits = [Portrait(reference) for _ in range(3)]

    def blocks():
        for y, x in metrics.pairs(reference, estimate):
            signals = (y, x, y - x)
            for portrait, signal in zip(portraits, signals, strict=True):
                portrait.add(signal)
            yield signals[-1]

    stream.write(dataclasses.replace(reference, blocks=blocks), path, progress)
    return portraits
