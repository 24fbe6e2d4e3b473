"""AAC, ALAC, WMA and the sound of video, decoded by FFmpeg.

This needs PyAV (the extra `av`). Decoders of these formats depend on everything that came before: AAC draws noise from
a running generator. A window equals that slice of the whole only if the file is decoded from its beginning, which takes
time.
"""

import importlib.util
from typing import BinaryIO

import numpy as np

from audiovae_jax.errors import DataError

# Position, first bytes, FFmpeg's name of the format, and ours. Other formats of FFmpeg may refer to further files.
_FORMATS = (
    (4, b"ftyp", "mov", "MP4, M4A or MOV"),
    (0, b"\x1aE\xdf\xa3", "matroska", "Matroska or WebM"),
    (0, b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "asf", "WMA or WMV"),
    (8, b"AVI ", "avi", "AVI"),
    (0, b"MAC ", "ape", "Monkey's Audio"),
    (0, b"wvpk", "wv", "WavPack"),
    (0, b"TTA1", "tta", "True Audio"),
    (0, b"DSD ", "dsf", "DSF"),
    (0, b"FLV\x01", "flv", "FLV"),
    (0, b"\xff\xf1", "aac", "AAC (ADTS)"),
    (0, b"\xff\xf9", "aac", "AAC (ADTS)"),
    (0, b"\x0b\x77", "ac3", "AC-3"),
)
SUFFIXES = (
    ".m4a", ".m4b", ".m4r", ".mp4", ".m4v", ".mov", ".3gp", ".3g2", ".webm", ".weba", ".mkv", ".mka", ".wma", ".wmv",
    ".asf", ".avi", ".ape", ".wv", ".tta", ".dsf", ".flv", ".aac", ".adts", ".ac3", ".eac3",
)  # fmt: skip
MAX_COUNTED = 1 << 32  # samples that are decoded only to count them: 27 h at 44.1 kHz
_TOLERANCE = 0.2  # seconds that an encoder's padding may be declared but not decoded
REMEDY = "install PyAV with pip install 'audiovae-jax[av]', or convert it to FLAC"


def recognise(start: bytes) -> tuple[str, str] | None:
    """Return FFmpeg's name and ours of a file's format, or None.

    `start` holds the file's first 16 bytes.
    """
    for at, mark, name, title in _FORMATS:
        if start[at:].startswith(mark):
            return name, title
    return None


def is_installed() -> bool:
    """Return whether PyAV can be imported."""
    return importlib.util.find_spec("av") is not None


class MissingError(DataError):
    """PyAV is not installed."""


class ContainerDecoder:
    """The first sound track of a container file, decoded in order.

    `speakers` are FFmpeg's names, some of which say that the speaker is not known.

    Args:
      file: its bytes.
      name: FFmpeg's name of the format.
      title: the format's name for messages.
      frames: samples per channel, if known; else the whole file is decoded to count them.

    Raises:
      MissingError: PyAV is not installed.
      DataError: the file has no sound that can be decoded.
    """

    format, damage = None, None

    def __init__(self, file: BinaryIO, name: str, title: str, frames: int | None = None):
        try:
            import av
        except ImportError:
            raise MissingError(f"{title} is not read without PyAV; {REMEDY}") from None
        self.file, self._name, self._title, self._error = file, name, title, av.FFmpegError
        self._container = None
        self._start()
        self.frames = frames
        if frames is None:
            self.frames, self.damage = self._count()
        self.index = {"container": [name, title, self.frames], "sequential": True}

    def read(self, start: int, count: int) -> np.ndarray:
        """Return `[count, channels]` float32 from sample `start` on.

        The result is shorter at the end of the audio.
        """
        if start < self._position:
            self._start()
        blocks = []
        while count > 0:
            block = self._next()
            if block is None:
                break
            first = max(0, start - self._position)
            taken, rest = block[first : first + count], block[first + count :]
            self._position += min(len(block), first + count)
            if len(rest):
                self._left = rest
            if len(taken):
                blocks.append(taken)
                count, start = count - len(taken), start + len(taken)
        return np.concatenate(blocks) if blocks else np.zeros((0, self.channels), np.float32)

    def close(self):
        """Close the decoder, but not its file."""
        if self._container is not None:
            self._container.close()

    def _start(self):
        import av

        self.close()
        self.file.seek(0)
        try:
            self._container = av.open(self.file, format=self._name, metadata_errors="ignore")
            streams = self._container.streams.audio
            if not streams:
                raise DataError(f"{self._title} has no sound")
            stream = streams[0]
            self.sample_rate, self.channels = stream.rate, stream.channels
            self.speakers = tuple(channel.name for channel in stream.layout.channels)
            self._declared = self._declared_length(stream)
            self._blocks = self._decoded(stream, av.AudioResampler(format="fltp"))
        except self._error as error:
            raise DataError(f"{self._title} cannot be read ({error.strerror})") from error
        self._position, self._left = 0, None

    def _decoded(self, stream, converter):
        """Iterate over decoded blocks `[n, channels]` float32."""
        for frame in self._container.decode(stream):
            if (frame.sample_rate, len(frame.layout.channels)) != (self.sample_rate, self.channels):
                raise DataError(f"{self._title} changes its sample rate or channels")
            for converted in converter.resample(frame):
                yield np.ascontiguousarray(converted.to_ndarray().T)

    def _next(self):
        block, self._left = self._left, None
        if block is not None:
            return block
        try:
            return next(self._blocks, None)
        except self._error as error:
            raise _DamageError(error.strerror or str(error)) from error

    def _declared_length(self, stream):
        """Return the number of samples that the header declares, or 0.

        A length that FFmpeg estimates from the bit rate does not count.
        """
        if self._name == "mov":
            return int((stream.duration or 0) * stream.time_base * stream.rate)
        if self._name == "matroska" and len(self._container.streams) == 1:
            return (self._container.duration or 0) * stream.rate // 1_000_000
        return 0

    def _count(self):
        """Decode everything, and return `(samples, damage)`."""
        frames, reason = 0, None
        try:
            while (block := self._next()) is not None:
                frames += len(block)
                self._position = frames
                if frames >= MAX_COUNTED:
                    raise DataError(f"{self._title} of {MAX_COUNTED} samples or more; split it")
        except _DamageError as error:
            reason = str(error)
        ends = frames / self.sample_rate
        if reason:
            return frames, f"damaged: audio ends at {ends:.2f} s ({reason})"
        if frames < self._declared - _TOLERANCE * self.sample_rate:
            return frames, f"truncated: audio ends at {ends:.2f} s of {self._declared / self.sample_rate:.2f} s"
        return frames, None


class _DamageError(DataError):
    """A part of a container that cannot be decoded."""
