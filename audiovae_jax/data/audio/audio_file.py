"""Audio files: probing, validation, and reading windows of them."""

import contextlib
import dataclasses
import math
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from audiovae_jax.data.audio import channels as layouts
from audiovae_jax.data.audio import decoders
from audiovae_jax.data.audio.decoders import Place
from audiovae_jax.data.audio.levels import LOUD, Level, Meter
from audiovae_jax.data.audio.remote import BLOCK, RemoteError, UnreachableError
from audiovae_jax.data.formats import containers, magic, mp3
from audiovae_jax.errors import DataError, printable

# Suffixes of the files that are looked for. The format is recognised by the content.
EXTENSIONS = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mp1", ".mpga", ".aif", ".aiff", ".aifc", ".au", ".snd",
    ".wave", ".bwf", ".rf64", ".bw64", ".w64", ".caf", ".voc", ".sph", ".nist", ".sf", ".ircam", ".paf", ".pvf", ".avr",
    ".svx", ".8svx", ".sds", ".xi", ".wve",
    *(containers.SUFFIXES if containers.is_installed() else ()),
)  # fmt: skip
# Suffixes of audio and video that are not read, which is reported.
UNREAD_EXTENSIONS = tuple(
    suffix for suffix in (
        *containers.SUFFIXES, ".alac", ".dts", ".amr", ".tak", ".shn", ".mpc", ".dff", ".ra", ".spx", ".mpg", ".mpeg",
        ".ogv", ".iff", ".htk", ".mat", ".awb",
    ) if suffix not in EXTENSIONS
)  # fmt: skip

_UNCOMPRESSED = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU")
_PROBE_FRAMES = 2048
_SILENCE_BLOCK = 1 << 20  # samples
RATES = (1000, 10_000_000)  # Hz; the rate in a corrupt header is usually outside
# Input samples read on both sides of a window before resampling, so that its edges are filtered with their neighbours.
_RESAMPLE_CONTEXT = 1024


@dataclasses.dataclass(frozen=True)
class AudioFile:
    """A readable audio file.

    Attributes:
      path: its location.
      frames: samples per channel.
      sample_rate: in Hz.
      channels: number of channels.
      speakers: names of its channels (see `channels.of_file`), None if they are not known.
      level: of the probed samples if their peak is above `LOUD`, otherwise None.
      index: how it is decoded, found by `probe`; None for libsndfile alone.
      damage: what is missing, if `probe` was told to allow it; otherwise None.
    """

    path: Place
    frames: int
    sample_rate: int
    channels: int
    speakers: tuple[str, ...] | None = None
    level: Level | None = None
    index: decoders.Index = dataclasses.field(default=None, compare=False, repr=False)
    damage: str | None = None

    @property
    def name(self) -> str:
        return printable(self.path)

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate

    def to_json(self) -> dict:
        """Return the fields except the path, as JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)[1:]}

    @classmethod
    def from_json(cls, path: Place, fields: dict) -> "AudioFile":
        """Make a file at a path from the fields of `to_json`."""
        speakers, level = fields["speakers"], fields["level"]
        return cls(path, **fields | {"speakers": speakers and tuple(speakers), "level": level and Level(*level)})

    def read(self, start: int, count: int) -> np.ndarray:
        """Read `[count, C]` float32 from sample `start` on.

        Raises:
          DataError: as `read_blocks`.
        """
        if count == 0:
            return np.zeros((0, self.channels), np.float32)
        (block,) = read_blocks(self, count, start, start + count)
        return block


def probe(
    path: Place,
    min_seconds: float = 0.0,
    channels: int = 1,
    allow_silence: bool = False,
    allow_truncated: bool = False,
) -> AudioFile:
    """Validate a file by its header, beginning, middle and end.

    Args:
      path: the file.
      min_seconds: shorter files are rejected.
      channels: the number of channels that the file must be convertible to.
      allow_silence: accept files whose samples are all zero.
      allow_truncated: accept damaged files, up to where their audio ends.

    Raises:
      DataError: the file cannot be used. The message is the reason, without the path.
      OSError: the operating system cannot open the file.
    """
    status = path.stat() if isinstance(path, Path) else None
    if status is not None and not stat.S_ISREG(status.st_mode):
        raise DataError("not a regular file")  # reading from a pipe would block forever
    if (path.size if status is None else status.st_size) == 0:
        raise DataError("the file is empty")
    try:
        with decoders.scan(path) as decoder:
            if decoder.format == "RAW":  # libsndfile's guess, by name, for files without a header
                raise DataError(_no_audio(path, "it has no header"))
            file = AudioFile(
                path, decoder.frames, decoder.sample_rate, decoder.channels, decoder.speakers,
                index=decoder.index, damage=decoder.damage,
            )  # fmt: skip
            if allow_truncated:
                file = _up_to_damage(file)
            elif file.damage:
                raise DataError(file.damage)
            require_use(file, min_seconds, channels)
            try:
                level, silent = _level(decoder, file)
            except _UndecodableError as error:
                raise DataError(_up_to_damage(file).damage or str(error)) from None
            if silent and not allow_silence and _is_silent(decoder, file):
                raise DataError("every sample is zero")
    except soundfile.LibsndfileError as error:
        raise DataError(_no_audio(path, error.error_string.rstrip("."))) from error
    except mp3.NoFramesError as error:
        raise DataError(_no_audio(path, str(error))) from error
    return dataclasses.replace(file, level=level) if level.peak > LOUD else file


def _level(decoder, file):
    """Return `(level, is_silent)` of a file's beginning, middle and end."""
    meter = Meter()
    for start in (0, file.frames // 2, max(0, file.frames - _PROBE_FRAMES)):
        meter.add(_read(decoder, file, start, min(_PROBE_FRAMES, file.frames - start)))
    return meter.level, meter.level.peak == 0


def _up_to_damage(file):
    """Return the file with the samples that can be decoded, and its damage."""
    frames = decoders.count(file.path, file.index)
    if frames == file.frames:
        return file
    ends, seconds = frames / file.sample_rate, file.seconds
    damage = file.damage or f"truncated or damaged: audio ends at {ends:.2f} s of {seconds:.2f} s"
    return dataclasses.replace(file, frames=frames, index={**(file.index or {}), "frames": frames}, damage=damage)


def require_use(file, min_seconds: float, channels: int):
    """Raise DataError if audio is invalid, too short, or not adaptable to `channels`."""
    if not RATES[0] <= file.sample_rate <= RATES[1]:
        raise DataError(f"its sample rate of {file.sample_rate} Hz is outside the range of audio (1 kHz to 10 MHz)")
    if file.frames == 0:
        raise DataError("contains no samples")
    if file.frames < min_seconds * file.sample_rate:
        raise DataError(f"{file.frames} samples are shorter than data.min_seconds={min_seconds}")
    adapt_channels(np.zeros((1, file.channels), np.float32), channels)


def read_window(file, position: float, length: int, sample_rate: int, channels: int, loop: bool = False) -> np.ndarray:
    """Read a window `[length, channels]` float32, resampled, adapted and padded.

    Args:
      file: an `AudioFile`, or another object with `frames`, `sample_rate`, `speakers` and `read`.
      position: start of the window, from 0 (the file's beginning) to 1 (the last start where the window fits).
      length: samples at `sample_rate`.
      sample_rate: of the result, in Hz.
      channels: of the result.
      loop: pad short files by repeating them instead of with zeros.

    Returns:
      `[length, channels]` float32.

    Raises:
      DataError: the file ends early, or contains NaN or infinite samples. The message names it.
    """
    # Positions are in the file's own samples. The context is a whole number of samples at both rates.
    start, needed = window(file, position, length, sample_rate)
    step = _step(file.sample_rate, sample_rate)
    context = 0 if file.sample_rate == sample_rate else -(-_RESAMPLE_CONTEXT // step) * step
    before = min(start, context)
    stop = min(file.frames, start + needed + context)
    audio = file.read(start - before, stop - (start - before))
    try:
        audio = adapt_channels(audio, channels, file.speakers)
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from None
    if context:
        audio = resample(audio, file.sample_rate, sample_rate)
        audio = audio[before * sample_rate // file.sample_rate :]
    audio = audio[:length]
    if len(audio) == length:
        return audio
    return np.pad(audio, ((0, length - len(audio)), (0, 0)), mode="wrap" if loop else "constant")


def window(file, position: float, length: int, sample_rate: int) -> tuple[int, int]:
    """Return `(first sample, samples)` of a window, at the file's own rate.

    The arguments are those of `read_window`.
    """
    needed = -(-length * file.sample_rate // sample_rate)
    start = int(position * max(0, file.frames - needed))
    # Start at a sample that exists at both rates, so that a window equals a slice of the whole file, resampled.
    return start - start % _step(file.sample_rate, sample_rate), needed


def read_blocks(file: AudioFile, size: int, start: int = 0, stop: int | None = None) -> Iterator[np.ndarray]:
    """Iterate over consecutive blocks `[<= size, C]` float32 of the file.

    The blocks keep the file's sample rate and channels.

    Raises:
      DataError: the file ends early, or contains NaN or infinite samples. The message names it.
    """
    stop = file.frames if stop is None else stop
    try:
        with decoders.open_decoder(file.path, file.index) as decoder:
            for first in range(start, stop, size):
                yield _read(decoder, file, first, min(size, stop - first))
    except soundfile.LibsndfileError as error:
        raise DataError(f"{file.name}: {_reason(error)}") from error
    except UnreachableError:
        raise
    except RemoteError as error:
        raise DataError(f"{file.name}: {error.detail}") from error
    except OSError as error:
        raise DataError(f"{file.name}: {error.strerror or error}") from error
    except DataError as error:
        raise DataError(f"{file.name}: {error}") from error


def adapt_channels(audio: np.ndarray, channels: int, speakers: tuple[str, ...] | None = None) -> np.ndarray:
    """Convert audio `[T, C]` to `[T, channels]`.

    - Mono is copied to every channel.
    - Surround is mixed down to stereo by ITU-R BS.775.
    - Mono output is the average of the stereo output.
    - Any other number of channels: the first ones in WAVE order.

    Args:
      audio: float32.
      channels: of the result.
      speakers: of `audio` (see `channels.of_file`). By default those of a WAVE file with as many channels.

    Raises:
      DataError: the audio has several channels, but fewer than `channels`.
    """
    if audio.shape[1] == 1 < channels:
        return np.repeat(audio, channels, axis=1)
    if audio.shape[1] < channels:
        raise DataError(f"{audio.shape[1]} channels cannot be made into {channels}")
    if channels > 2:
        audio = layouts.in_wave_order(audio, speakers)
        return audio if audio.shape[1] == channels else np.ascontiguousarray(audio[:, :channels])
    if audio.shape[1] > 2:
        audio = np.ascontiguousarray(layouts.downmixed(audio, speakers))
    return audio if audio.shape[1] == channels else audio.mean(axis=1, keepdims=True)


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample `[T, C]` to about `[T * to_rate / from_rate, C]` with libsoxr (HQ)."""
    import soxr

    return soxr.resample(audio, from_rate, to_rate, quality="HQ").astype(np.float32)


def _step(from_rate, to_rate):
    """The period, in samples at `from_rate`, at which samples of both rates coincide."""
    return from_rate // math.gcd(from_rate, to_rate)


def _read(decoder, file, start, frames):
    # Compressed audio varies in bytes per sample, and decoders read a little before the position.
    slack = 0 if decoder.format in _UNCOMPRESSED else BLOCK
    size = 0 if isinstance(file.path, Path) else file.path.size
    decoders.expect(decoder, frames * size // max(1, file.frames) + slack)
    try:
        block = decoder.read(start, frames)
    except soundfile.LibsndfileError as error:
        raise _UndecodableError(
            f"damaged or truncated: reading at sample {start} of {file.frames} failed "
            f"({error.error_string.rstrip('.')})"
        ) from error
    if len(block) < frames:
        raise _UndecodableError(
            f"truncated: the header promises {file.frames} samples, but none follow {start + len(block)}"
        )
    if not np.isfinite(block).all():
        raise DataError("contains NaN or infinite samples")
    return block


class _UndecodableError(DataError):
    """Samples cannot be decoded."""


def _reason(error: soundfile.LibsndfileError):
    return f"not audio that can be read ({error.error_string.rstrip('.')})"


def _no_audio(place, reason):
    """Return a reason that names the file's content, if its first bytes show it."""
    with contextlib.closing(open(place, "rb") if isinstance(place, Path) else place.open()) as reader:
        content = magic.content(reader.read(magic.SIZE))
    return f"not audio that can be read ({reason})" + ("" if content is None else f": it is {content}")


def _is_silent(decoder, file):
    return not any(
        _read(decoder, file, start, min(_SILENCE_BLOCK, file.frames - start)).any()
        for start in range(0, file.frames, _SILENCE_BLOCK)
    )
