"""Audio files: probing, validation, and reading windows of them."""

import contextlib
import dataclasses
import math
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile

from audiovae_jax.data.audio.remote import BLOCK, RemoteError, RemoteFile, UnreachableError
from audiovae_jax.data.audio.section import Section
from audiovae_jax.data.formats import magic
from audiovae_jax.errors import DataError, printable

# Names of files that libsndfile reads. It recognises the format by the content.
EXTENSIONS = (
    ".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".mp2", ".mpga", ".aif", ".aiff", ".aifc", ".au", ".snd",
    ".wave", ".bwf", ".rf64", ".bw64", ".w64", ".caf", ".voc", ".sph",
)  # fmt: skip
# Names of audio that libsndfile does not read, and of video.
CONTAINER_EXTENSIONS = (
    ".m4a", ".m4b", ".m4r", ".aac", ".adts", ".alac", ".wma", ".asf", ".ac3", ".eac3", ".dts", ".amr", ".mka", ".weba",
    ".ape", ".wv", ".tta", ".tak", ".shn", ".mpc", ".dsf", ".dff", ".ra", ".spx",
    ".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wmv", ".flv", ".mpg", ".mpeg", ".3gp", ".3g2", ".ogv",
)  # fmt: skip

_UNCOMPRESSED = ("WAV", "WAVEX", "RF64", "W64", "AIFF", "AU")
_PROBE_FRAMES = 2048
_MAX_OPENINGS = 8
RATES = (1000, 10_000_000)  # Hz; the rate in a corrupt header is usually outside
# Input samples read on both sides of a window before resampling, so that its edges are filtered with their neighbours.
_RESAMPLE_CONTEXT = 1024
# ITU-R BS.775: centre and surround at -3 dB, no LFE. WAV order is L R C LFE Ls Rs.
_DOWNMIX_5_1 = np.array([[1, 0], [0, 1], [0.5**0.5, 0.5**0.5], [0, 0], [0.5**0.5, 0], [0, 0.5**0.5]], np.float32)


# The location of a file: on this machine, behind a URL, or in an archive.
Place = Path | RemoteFile | Section


@dataclasses.dataclass(frozen=True)
class AudioFile:
    """A readable audio file: `frames` samples per channel at `sample_rate` Hz."""

    path: Place
    frames: int
    sample_rate: int
    channels: int

    @property
    def name(self) -> str:
        return printable(self.path)

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate

    def read(self, start: int, count: int) -> np.ndarray:
        """Read `[count, C]` float32 from sample `start` on.

        Raises:
          DataError: as `read_blocks`.
        """
        (block,) = read_blocks(self, count, start, start + count)
        return block


def probe(path: Place, min_seconds: float = 0.0, channels: int = 1, allow_silence: bool = False) -> AudioFile:
    """Validate a file by its header, beginning, middle and end.

    Args:
      path: the file.
      min_seconds: shorter files are rejected.
      channels: the number of channels that the file must be convertible to.
      allow_silence: accept files whose samples are all zero.

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
        with _open(path) as f:
            if f.format == "RAW":  # libsndfile's guess, by name, for files without a header
                raise DataError(_no_audio(path, "it has no header"))
            file = AudioFile(path, f.frames, f.samplerate, f.channels)
            require_use(file, min_seconds, channels)
            silent = not allow_silence
            for start in (0, file.frames // 2, max(0, file.frames - _PROBE_FRAMES)):
                block = _read(f, file, start, min(_PROBE_FRAMES, file.frames - start))
                silent &= not block.any()
            if silent and _is_silent(f):
                raise DataError("every sample is zero")
    except soundfile.LibsndfileError as error:
        if status is not None:
            with open(path, "rb"):  # raises the operating system's error, which libsndfile does not report
                pass
        raise DataError(_no_audio(path, error.error_string.rstrip("."))) from error
    return file


def require_use(file, min_seconds: float, channels: int):
    """Raise DataError if audio is invalid, too short, or not adaptable to `channels`."""
    if not RATES[0] <= file.sample_rate <= RATES[1]:
        raise DataError(f"its sample rate of {file.sample_rate} Hz is none of sound")
    if file.frames == 0:
        raise DataError("holds no samples")
    if file.frames < min_seconds * file.sample_rate:
        raise DataError(f"{file.frames} samples are shorter than data.min_seconds={min_seconds}")
    adapt_channels(np.zeros((1, file.channels), np.float32), channels)


def read_window(file, position: float, length: int, sample_rate: int, channels: int, loop: bool = False) -> np.ndarray:
    """Read a window `[length, channels]` float32, resampled, adapted and padded.

    Args:
      file: an `AudioFile`, or another object with `frames`, `sample_rate` and `read`.
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
        audio = adapt_channels(audio, channels)
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
        with _open(file.path) as f:
            for first in range(start, stop, size):
                yield _read(f, file, first, min(size, stop - first))
    except soundfile.LibsndfileError as error:
        is_gone = isinstance(file.path, Path) and not os.path.exists(file.path)
        reason = "No such file or directory" if is_gone else _reason(error)
        raise DataError(f"{file.name}: {reason}") from error
    except UnreachableError:
        raise
    except RemoteError as error:
        raise DataError(f"{file.name}: {error.detail}") from error
    except (OSError, DataError) as error:
        raise DataError(f"{file.name}: {error}") from error


def open_sound(path: Path, mode: str = "r", **options) -> soundfile.SoundFile:
    """Open a `soundfile.SoundFile`.

    Names need not be UTF-8. A file that hangs does not block the opening of others.
    """
    return _opened(lambda: _Sound(path if os.name == "nt" else os.fsencode(path), mode, **options), mode == "r")


class _Sound(soundfile.SoundFile):
    """A `SoundFile` that opens without soundfile's global lock.

    soundfile holds this lock while it opens a file, to protect libsndfile's global error number. A file that hangs
    would block all others, and a remote file would delay them.
    """

    def __init__(self, *args, **options):
        self._sf_error_lock = threading.Lock()
        super().__init__(*args, **options)


def _opened(opening, is_read):
    """Return `opening()`, retried until it fails twice in a row with the same error.

    Without the global lock, the first error may be another thread's. Writers are not retried.
    """
    previous = None
    for _ in range(_MAX_OPENINGS if is_read else 1):
        try:
            return opening()
        except soundfile.LibsndfileError as error:
            if error.code and error.code == previous:
                raise
            previous, last = error.code, error
    raise last


@contextlib.contextmanager
def _open(place):
    """Open a place as a `SoundFile` with an attribute `reader`.

    `reader` is the reader of the file's bytes, None for local files.
    """
    if isinstance(place, Path):
        with open_sound(place) as f:
            f.reader = None
            yield f
        return
    with contextlib.closing(place.open()) as reader:
        try:
            with _opened(lambda: reader.seek(0) or _Sound(reader), is_read=True) as f:
                f.reader = reader
                yield f
        except (soundfile.LibsndfileError, DataError) as error:
            # libsndfile only sees an early end of the file. The reader knows the cause.
            if reader.error is None:
                raise
            raise reader.error from error


def adapt_channels(audio: np.ndarray, channels: int) -> np.ndarray:
    """Convert audio `[T, C]` to `[T, channels]`.

    - Mono is copied to every channel.
    - 5.1 is mixed down to stereo by ITU-R BS.775.
    - Other layouts keep their first channels.
    - Mono output is the average of the stereo output.

    Raises:
      DataError: several channels would have to become more.
    """
    if audio.shape[1] == channels:
        return audio
    if audio.shape[1] == 1:
        return np.repeat(audio, channels, axis=1)
    if audio.shape[1] == 6 and channels <= 2:
        audio = audio @ _DOWNMIX_5_1
    elif audio.shape[1] < channels:
        raise DataError(f"{audio.shape[1]} channels cannot be made into {channels}")
    if channels == 1:
        return audio[:, :2].mean(axis=1, keepdims=True)
    return np.ascontiguousarray(audio[:, :channels])


def resample(audio: np.ndarray, from_rate: int, to_rate: int) -> np.ndarray:
    """Resample `[T, C]` to about `[T * to_rate / from_rate, C]` with libsoxr (HQ)."""
    import soxr

    return soxr.resample(audio, from_rate, to_rate, quality="HQ").astype(np.float32)


def _step(from_rate, to_rate):
    """The period, in samples at `from_rate`, at which samples of both rates coincide."""
    return from_rate // math.gcd(from_rate, to_rate)


def _read(f, file, start, frames):
    if f.reader is not None:
        # Compressed audio varies in bytes per sample, and seeking reads a little before the position.
        slack = 0 if f.format in _UNCOMPRESSED else BLOCK
        f.reader.expect(frames * file.path.size // max(1, file.frames) + slack)
    try:
        f.seek(start)
        block = f.read(frames, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(
            f"damaged or truncated: reading at sample {start} of {file.frames} failed "
            f"({error.error_string.rstrip('.')})"
        ) from error
    if len(block) < frames:
        raise DataError(f"truncated: the header promises {file.frames} samples, but none follow {start + len(block)}")
    if not np.isfinite(block).all():
        raise DataError("holds NaN or infinite samples")
    return block


def _reason(error: soundfile.LibsndfileError):
    return f"not audio that can be read ({error.error_string.rstrip('.')})"


def _no_audio(place, reason):
    """Return a reason that names the file's actual content, if its first bytes tell it."""
    with contextlib.closing(open(place, "rb") if isinstance(place, Path) else place.open()) as reader:
        content = magic.content(reader.read(magic.SIZE))
    return f"not audio that can be read ({reason})" + ("" if content is None else f": it is {content}")


def _is_silent(f):
    f.seek(0)
    return not any(block.any() for block in f.blocks(1 << 20, dtype="float32"))
