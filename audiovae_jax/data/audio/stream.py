"""Streams of audio blocks: opening, resampling and writing files of any length."""

import dataclasses
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile

from audiovae_jax.data.audio import audio_file, levels
from audiovae_jax.data.audio import channels as layouts
from audiovae_jax.data.audio.levels import Level, Meter
from audiovae_jax.data.formats import sound
from audiovae_jax.errors import DataError, printable
from audiovae_jax.storage import atomic

# Samples per block of a file.
BLOCK = 1 << 18


@dataclasses.dataclass(frozen=True)
class AudioStream:
    """Audio in blocks that can be read from the start any number of times.

    Attributes:
      sample_rate: in Hz.
      length: in samples.
      channels: of its blocks.
      blocks: returns a new iterator of consecutive `[n, channels]` float32 blocks.
      name: a name for error messages.
      speakers: names of its channels, which are in WAVE order (see `channels`); None if they are not known.
    """

    sample_rate: int
    length: int
    channels: int
    blocks: Callable[[], Iterator[np.ndarray]]
    name: str = "the audio"
    speakers: tuple[str, ...] | None = None

    def resampled(self, sample_rate: int) -> "AudioStream":
        """Return the stream at another sample rate; its length is rounded up."""
        if sample_rate == self.sample_rate:
            return self
        length = resampled_length(self.length, self.sample_rate, sample_rate)

        def blocks():
            return resample_blocks(self.blocks(), self.sample_rate, sample_rate, self.channels, length)

        return dataclasses.replace(self, sample_rate=sample_rate, length=length, blocks=blocks)

    def map(self, function: Callable[[np.ndarray], np.ndarray], channels: int) -> "AudioStream":
        """Return the stream with `function` applied to every block."""
        return dataclasses.replace(self, channels=channels, speakers=None, blocks=lambda: map(function, self.blocks()))

    def adapted(self, channels: int) -> "AudioStream":
        """Return the stream with other channels, see `audio_file.adapt_channels`."""
        if channels == self.channels:
            return self
        return self.map(lambda block: audio_file.adapt_channels(block, channels, self.speakers), channels)


def open_file(path: str | Path, allow_truncated: bool = False) -> AudioStream:
    """Open a file as a stream that is read on demand.

    A file far above full scale causes a warning.

    Args:
      path: the file.
      allow_truncated: read a damaged file up to its damage, with a warning that names the second.

    Raises:
      DataError: the file cannot be used. The message names it.
    """
    path = Path(path)
    name = printable(path)
    try:
        file = audio_file.probe(path, allow_silence=True, allow_truncated=allow_truncated)
    except FileNotFoundError:
        raise DataError(f"{name}: there is no such file") from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{name}: {error}") from None

    if file.damage is not None:
        warnings.warn(f"{name}: {file.damage}; {file.seconds:.2f} s are read", UserWarning, stacklevel=2)
    if file.level is not None:
        warnings.warn(f"{name} {levels.far_above(file.level)}", UserWarning, stacklevel=2)
    return of_audio(file, lambda: audio_file.read_blocks(file, BLOCK))


def of_audio(audio, blocks: Callable[[], Iterator[np.ndarray]]) -> AudioStream:
    """Make a stream of a file or a track from an iterator of its blocks.

    Args:
      audio: an `AudioFile`, or another object with the same attributes.
      blocks: returns a new iterator of blocks with the channels of `audio`.
    """

    def ordered():
        return (layouts.in_wave_order(block, audio.speakers) for block in blocks())

    speakers = layouts.wave_speakers(audio.speakers)
    return AudioStream(audio.sample_rate, audio.frames, audio.channels, ordered, f"{audio.name}: the audio", speakers)


def of_array(audio: np.ndarray, sample_rate: int) -> AudioStream:
    """Make a stream of an array `[T, C]`."""

    def blocks():
        for start in range(0, len(audio), BLOCK):
            yield audio[start : start + BLOCK]

    return AudioStream(sample_rate, len(audio), audio.shape[1], blocks)


def resampled_length(length: int, from_rate: int, to_rate: int) -> int:
    """Return the length at `to_rate` of `length` samples at `from_rate`, rounded up."""
    return -(-length * to_rate // from_rate)


def resample_blocks(
    blocks: Iterable[np.ndarray], from_rate: int, to_rate: int, channels: int, length: int
) -> Iterator[np.ndarray]:
    """Resample consecutive blocks with libsoxr at high quality.

    Args:
      blocks: consecutive `[n, channels]` float32.
      from_rate, to_rate: in Hz.
      channels: of the blocks.
      length: total samples of the result. The resampler's output is cut or zero-padded to it.
    """
    import soxr

    stream = soxr.ResampleStream(from_rate, to_rate, channels, dtype="float32", quality="HQ")
    done = 0

    def cut(block):
        nonlocal done
        block = block.reshape(-1, channels)[: length - done]
        done += len(block)
        return block

    for block in blocks:
        resampled = cut(stream.resample_chunk(np.ascontiguousarray(block, np.float32)))
        if len(resampled):
            yield resampled
    yield cut(stream.resample_chunk(np.zeros((0, channels), np.float32), last=True))
    if done < length:
        yield np.zeros((length - done, channels), np.float32)


def watched(
    blocks: Iterable[np.ndarray], length: int, progress: Callable[[float], None] | None
) -> Iterator[np.ndarray]:
    """Iterate over blocks, and report progress after each.

    `progress` is called with the fraction of `length` that is done.
    """
    done = 0
    for block in blocks:
        yield block
        done += len(block)
        if progress is not None:
            progress(done / length)


def write(
    audio: AudioStream, path: Path, progress: Callable[[float], None] | None = None, *, peak: str | None = None
) -> Level:
    """Write a stream with `write_file`, and report the fraction done to `progress`."""
    blocks = watched(audio.blocks(), audio.length, progress)
    return write_file(path, blocks, audio.sample_rate, audio.channels, audio.length, peak=peak)


def write_file(
    path: Path,
    blocks: Iterable[np.ndarray],
    sample_rate: int,
    channels: int,
    length: int,
    *,
    peak: str | None = None,
) -> Level:
    """Write blocks atomically to a file of the format that its suffix names.

    A WAV beyond the 4 GiB limit of its header is written as RF64 (EBU Tech 3306), with the same suffix.

    Args:
      path: ends in one of `SUFFIXES`.
      blocks: consecutive `[n, channels]`, `length` samples in total. Surround is in WAVE order.
      sample_rate: in Hz.
      channels: of the blocks.
      length: in samples.
      peak: what to do with samples above full scale, one of `PEAKS`. "clip" clips them. "scale" divides the whole file
        by its peak, with a copy of the audio on disk until the peak is known. "keep" needs a format of floats. By
        default, formats of floats keep them, FLAC clips them, and lossy formats encode them for players to clip.

    Returns:
      The level of the blocks.

    Raises:
      DataError: the format is unknown or cannot hold the audio, or the file cannot be written.
    """
    name = printable(path)
    if path.suffix.lower() not in SUFFIXES:
        raise DataError(f"{name}: audio of the kind {path.suffix!r} cannot be written; use {' or '.join(SUFFIXES)}")
    kind, subtype, sample_bytes = _KINDS[path.suffix.lower()]
    if sample_bytes is not None and length * channels * sample_bytes > _LARGEST:
        if kind != "WAV":
            raise DataError(f"{name}: {length} samples are more than the 4 GiB of this kind; use .wav or .flac")
        kind = "RF64"
    if subtype == "VORBIS" and sample_rate > _LARGEST_VORBIS_RATE:  # libsndfile cannot
        raise DataError(f"{name}: Vorbis is limited to {_LARGEST_VORBIS_RATE} Hz, not {sample_rate}; use .flac")
    if peak == "keep" and not holds_floats(path):
        raise DataError(f"{name}: {path.suffix} does not keep samples above full scale; use .wav, or scale them")
    written, meter = 0, Meter()
    try:
        with atomic.replacing(path) as temporary:
            options = {"samplerate": sample_rate, "channels": channels, "subtype": subtype, "format": kind}
            with sound.open_sound(temporary, "w", **options) as file:
                for block in _leveled(blocks, peak, meter, path.parent):
                    file.write(layouts.in_vorbis_order(block) if kind == "OGG" else block)
                    written += len(block)
            if subtype in ("FLOAT", "PCM_24"):
                with sound.open_sound(temporary) as file:
                    if file.frames != written:  # the header overflowed, or the disk is full
                        raise DataError(f"{name} was not written: {written} samples came back as {file.frames}")
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        reason += " (is the disk full, or a limit on file sizes reached?)" if reason == "System error" else ""
        raise DataError(f"{name} was not written: {reason}") from error
    except AssertionError as error:  # soundfile asserts that all samples were written
        raise DataError(f"{name} was not written: the disk is full, or a limit on file sizes was reached") from error
    except OSError as error:
        raise DataError(f"{name} was not written: {error.strerror or error}") from error
    return meter.level


def holds_floats(path: Path) -> bool:
    """Return whether the format that the suffix names keeps samples above full scale."""
    return _KINDS[path.suffix.lower()][1] == "FLOAT"


def _leveled(blocks, peak, meter, folder):
    """Iterate over the blocks with `peak` applied, and add them to `meter`."""
    if peak != "scale":
        for block in blocks:
            meter.add(block)
            yield np.clip(block, -1, 1) if peak == "clip" else block
        return
    with tempfile.TemporaryFile(dir=folder) as copy:
        shapes = []
        for block in blocks:
            meter.add(block)
            copy.write(np.ascontiguousarray(block, np.float32))
            shapes.append(block.shape)
        copy.seek(0)
        for shape in shapes:
            block = np.frombuffer(copy.read(4 * math.prod(shape)), np.float32).reshape(shape)
            yield block / np.float32(max(1.0, meter.level.peak))


PEAKS = ("clip", "scale", "keep")
# By suffix: libsndfile's format and subtype, and the bytes per sample if the header has a 32-bit size.
# WAV and AIFF store float32. The other formats store the best subtype that they have.
_KINDS = {
    ".wav": ("WAV", "FLOAT", 4),
    ".flac": ("FLAC", "PCM_24", None),
    ".ogg": ("OGG", "VORBIS", None),
    ".opus": ("OGG", "OPUS", None),
    ".mp3": ("MP3", "MPEG_LAYER_III", None),
    ".aif": ("AIFF", "FLOAT", 4),
    ".aiff": ("AIFF", "FLOAT", 4),
}
SUFFIXES = tuple(suffix for suffix, (kind, *_) in _KINDS.items() if kind in soundfile.available_formats())
_LARGEST_VORBIS_RATE = 192_000  # Hz
_LARGEST = 2**32 - 2**16  # bytes of samples, which leaves room for the header
