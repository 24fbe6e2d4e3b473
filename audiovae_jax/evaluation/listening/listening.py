"""Reconstruct, plot and measure files of any length, block by block."""

import concurrent.futures
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from audiovae_jax.data.audio import audio_file, stream
from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.errors import DataError
from audiovae_jax.evaluation import metrics
from audiovae_jax.evaluation.latents import LatentStatistics
from audiovae_jax.evaluation.listening.portrait import Portrait
from audiovae_jax.inference.codec import Codec

MIX = "Mix channels to fit the model"  # label of the page's control
Progress = Callable[[float, str], None]
_MAX_HOURS = 12  # per file
_MAX_CHANNELS = 16
_MAX_VALUES = 1 << 31  # over all channels, at the file's and at the model's rate: six hours of stereo at 48 kHz
_PLAYED = (".wav", ".flac", ".mp3", ".ogg", ".opus")  # formats that browsers play
_THREADS = 4  # for computing metrics


@dataclasses.dataclass(frozen=True)
class Recording:
    """Audio to play, with its picture.

    Attributes:
      title: title of the audio.
      path: a file that browsers play.
      portrait: waveform and spectrogram.
    """

    title: str
    path: Path
    portrait: Portrait

    @property
    def picture(self) -> str:
        """Data URI of the spectrogram."""
        return self.portrait.spectrogram()


@dataclasses.dataclass(frozen=True)
class Reconstructed:
    """A reconstructed file.

    Attributes:
      recordings: original, reconstruction and difference.
      metrics: values by column name, see `metrics.COLUMNS`.
      reconstruction, difference: float WAV files.
      latents: a `.safetensors` file.
    """

    recordings: tuple[Recording, ...]
    metrics: dict[str, float | None]
    reconstruction: Path
    difference: Path
    latents: Path


def open_audio(codec: Codec, path: Path, *, mix: bool = False) -> AudioStream:
    """Open an uploaded audio file.

    Args:
      codec: the model.
      path: path of the file.
      mix: see `Codec.encode`.

    Raises:
      DataError: the file is unusable or too long, or its channels do not match the model's and `mix` is False.
    """
    source, wanted = stream.open_file(path), codec.model.in_channels
    require_bounded(codec, path.name, source)
    if not mix and wanted != 1 and source.channels not in (1, wanted):
        raise DataError(
            f'{path.name} has {source.channels} channels, but the model needs {wanted}; tick "{MIX}" to mix them'
        )
    return source


def require_bounded(codec: Codec, name: str, audio: Any):
    """Raise DataError if audio exceeds the page's limits.

    File size is not a sufficient limit: silence compresses well, and audio of a low sample rate grows when it is
    resampled to the model's rate.

    Args:
      codec: the model.
      name: name of the file, for the error.
      audio: object with integers `sample_rate` in Hz, `length` in samples and `channels`, of any size.
    """
    rate, length, channels = audio.sample_rate, audio.length, audio.channels
    low, high = audio_file.RATES
    if not low <= rate <= high:
        raise DataError(f"{name}: its sample rate must be from {low} to {high} Hz")
    computed = stream.resampled_length(length, rate, codec.sample_rate) * max(channels, codec.model.in_channels)
    is_long = length > _MAX_HOURS * 3600 * rate or max(length * channels, computed) > _MAX_VALUES
    if is_long or channels > _MAX_CHANNELS:
        hours, channels = min(length, 10**15) / rate / 3600, min(channels, 10**6)
        raise DataError(
            f"{name}: {hours:.1f} hours of {channels} channels are too much for this page, which accepts up to "
            f"{_MAX_HOURS} hours, {_MAX_CHANNELS} channels and {_MAX_VALUES} samples over all channels"
        )


def reconstruct(codec: Codec, path: Path, folder: Path, progress: Progress, *, mix: bool = False) -> Reconstructed:
    """Encode, decode and measure a file.

    The written files equal those of the commands `reconstruct` and `encode`. Audio is processed in blocks. Only the
    latents are held in memory.

    Args:
      codec: the model.
      path: the audio file.
      folder: folder for the results.
      progress: called with the finished fraction and a description of the current stage.
      mix: see `Codec.encode`.

    Raises:
      DataError: the audio is unusable.
    """
    source, name = open_audio(codec, path, mix=mix), path.stem
    blocks, statistics = [], LatentStatistics.of(codec.model)

    def watch(posterior):
        blocks.append(posterior.z)
        statistics.add(posterior)

    made = codec.reconstruct_stream(source, mix=mix, watch=watch)
    reconstruction = folder / f"{name}.reconstruction.wav"
    stream.write(made, reconstruction, lambda share: progress(0.6 * share, "encoding and decoding"))
    latents = folder / f"{name}.safetensors"
    codec.latents_of(blocks, source, made.channels).save(latents)
    del blocks[:]
    estimate, reference = stream.open_file(reconstruction), source.adapted(made.channels)
    difference = folder / f"{name}.difference.wav"
    portraits = _subtract(reference, estimate, difference, lambda share: progress(0.6 + 0.1 * share, "subtracting"))
    with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        columns, _ = metrics.measure(
            reference, estimate, pool=pool, progress=lambda share: progress(0.7 + 0.3 * share, "measuring")
        )
    columns |= statistics.columns(source.length / source.sample_rate)
    titles = ("original", "reconstruction", "difference")
    paths = (playable(source, path, folder), reconstruction, difference)
    recordings = map(Recording, titles, paths, portraits)
    return Reconstructed(tuple(recordings), columns, reconstruction, difference, latents)


def listen(title: str, path: Path, folder: Path, progress: Progress) -> Recording:
    """Return a file to play, with its picture.

    Args:
      title: title of the audio.
      path: path of the file.
      folder: folder for a playable copy, see `playable`.
      progress: called with the finished fraction and a description of the current stage.

    Raises:
      DataError: the audio is unusable.
    """
    source = stream.open_file(path)
    portrait = Portrait(source)
    for block in stream.watched(source.blocks(), source.length, lambda share: progress(share, "drawing")):
        portrait.add(block)
    return Recording(title, playable(source, path, folder), portrait)


def playable(source: AudioStream, path: Path, folder: Path) -> Path:
    """Return the file itself if browsers play its format, otherwise a WAV copy."""
    if path.suffix.lower() in _PLAYED:
        return path
    copy = folder / f"{path.stem}.original.wav"
    stream.write(source, copy)
    return copy


def _subtract(reference, estimate, path, progress):
    """Write `reference - estimate`.

    Returns:
      The pictures of the reference, the estimate and the difference.
    """
    portraits = [Portrait(reference) for _ in range(3)]

    def blocks():
        for y, x in metrics.pairs(reference, estimate):
            signals = (y, x, y - x)
            for portrait, signal in zip(portraits, signals, strict=True):
                portrait.add(signal)
            yield signals[-1]

    stream.write(dataclasses.replace(reference, blocks=blocks), path, progress)
    return portraits
