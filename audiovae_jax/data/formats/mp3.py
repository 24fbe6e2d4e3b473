"""MPEG audio (MP1, MP2, MP3): counting frames, and decoding ranges exactly.

The header of an MP3 states its length wrongly or not at all. A decoder that starts in the middle lacks the bits that
earlier frames store for it (the bit reservoir). Therefore this module finds all frames (ISO/IEC 11172-3, 13818-3) once.
It then decodes a range of them, with as many earlier frames as it depends on.
"""

import dataclasses
import functools
import io
import itertools
import re
import struct
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from audiovae_jax.data.formats import sound
from audiovae_jax.data.formats.reader import Reader, read_at
from audiovae_jax.errors import DataError

_STRIDE = 64  # frames per entry of the table of offsets
_BLOCK = 1 << 20  # bytes per read of a scan
_MAX_FRAME = 2881  # bytes: MP2 of 160 kbit/s at 8 kHz
_SEARCHED = 1 << 12  # bytes searched at a time for the next frame
_MAX_CANDIDATES = 100_000  # bytes that look like a frame but are not, before a scan fails
_SYNC = re.compile(rb"\xff[\xe2-\xff]|ID3|TAG|APET")
_STATED_SIZE = 1 << 40  # bytes
_DECODER_DELAY = 529  # samples by which decoders delay MP3
_STATE_FRAMES = 4  # frames before a range for the overlap and filter bank; a damaged frame keeps older state
# kbit/s by (is MPEG-1, layer) and the index in the header; index 0 is the free format, which is not supported.
_BITRATES = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_RATES = {3: (44100, 48000, 32000), 2: (22050, 24000, 16000), 0: (11025, 12000, 8000)}  # Hz, by version


class NoFramesError(DataError):
    """A file without a frame of MPEG audio."""


class _LostError(Exception):
    """The search for the next frame was given up after `gap` bytes."""

    def __init__(self, gap: int):
        super().__init__(gap)
        self.gap = gap


@dataclasses.dataclass(frozen=True)
class Header:
    """The header of a frame.

    Attributes:
      stream: version, layer, rate and channels, which are equal in all frames of a stream.
      sample_rate: in Hz.
      channels: 1 or 2.
      samples: per channel.
      size: of the frame in bytes.
      start: bytes of header and side information before the frame's main data.
      reservoir: maximum number of bytes of the main data that earlier frames may hold.
    """

    stream: tuple[int, int, int, int]
    sample_rate: int
    channels: int
    samples: int
    size: int
    start: int
    reservoir: int


@dataclasses.dataclass(frozen=True)
class Part:
    """A stream of frames in a file; files that were joined have several.

    Attributes:
      sample_rate: in Hz.
      channels: 1 or 2.
      frame_samples: samples per frame and channel.
      skip: samples before the first that belongs to the audio (delay of the encoder and decoder).
      length: samples of the audio.
      frames: number of frames.
      end: offset in bytes of the end of the last frame.
      offsets: of every 64th frame, in bytes.
    """

    sample_rate: int
    channels: int
    frame_samples: int
    skip: int
    length: int
    frames: int
    end: int
    offsets: tuple[int, ...]

    def read(self, file: BinaryIO, start: int, count: int) -> np.ndarray:
        """Decode `[count, channels]` float32 from sample `start` on.

        The result equals that slice of the decoded part, for any range.
        """
        first = (start + self.skip) // self.frame_samples
        stop = min(self.frames, -(-(start + self.skip + count) // self.frame_samples))
        # One table entry more than the bit reservoir and the state before the range can ever need.
        entry = max(0, first // _STRIDE - 1)
        last = -(-stop // _STRIDE)
        begin, end = self.offsets[entry], self.offsets[last] if last < len(self.offsets) else self.end
        data = read_at(file, begin, end - begin + 4)  # with the header that follows
        stream = _header(int.from_bytes(data[:4])).stream
        walk = _walk(_Source(io.BytesIO(data)), 0, stream)
        frames = [(at, header) for at, header, _ in itertools.islice(walk, stop - entry * _STRIDE)]
        state = max(0, first - entry * _STRIDE - _STATE_FRAMES)
        earliest = _reservoir_start([header for _, header in frames], state)
        encoded = [data[at : at + header.size] for at, header in frames]
        reservoir = _silenced(encoded[earliest:state], [header for _, header in frames[earliest:state]])
        audio = _decode([*reservoir, *encoded[state:]], self.frame_samples)
        at = start + self.skip - (entry * _STRIDE + earliest) * self.frame_samples
        return audio[at : at + count]


@dataclasses.dataclass(frozen=True)
class Scan:
    """The parts of a file.

    Attributes:
      parts: in their order.
      damage: what is missing or is not audio, with the second, or None.
    """

    parts: tuple[Part, ...]
    damage: str | None


def scan(file: BinaryIO) -> Scan:
    """Find all frames of a file.

    Tags are skipped. The count in a Xing, Info or VBRI header is only used to detect truncation.

    Raises:
      NoFramesError: there are no frames.
    """
    source, runs = _Source(file), []
    try:
        for offset, header, gap in _walk(source, 0):
            info = _info(source, offset, header)
            if info is not None or not runs or runs[-1].header.stream != header.stream:
                runs.append(_Run(header, info))
                if info is not None:  # this frame is silent and not part of the audio
                    continue
            runs[-1].add(offset, header, gap)
    except _LostError as error:
        if runs:
            runs[-1].lose(error.gap)
    runs = [run for run in runs if run.frames]
    if not runs:
        raise NoFramesError("it has no frames of MPEG audio")
    damages = [damage for run in runs for damage in [run.damage()] if damage]
    return Scan(tuple(run.part() for run in runs), damages[0] if damages else None)


def is_frame(start: bytes) -> bool:
    """Return whether a file that starts with these bytes may be MPEG audio."""
    return len(start) >= 4 and _header(int.from_bytes(start[:4])) is not None


def tags_size(file: BinaryIO) -> int:
    """Return the size of the ID3v2 tags at the beginning of a file, which may precede any format."""
    size, start = 0, read_at(file, 0, 16)
    while start.startswith(b"ID3") and len(start) == 16:
        size += tag_size(start)
        start = read_at(file, size, 16)
    return size


def tag_size(start: bytes) -> int:
    """Return the size of a file's ID3v2 tag, given at least its first ten bytes."""
    size = start[6] << 21 | start[7] << 14 | start[8] << 7 | start[9]
    return 10 + size + (10 if start[5] & 0x10 else 0)


def to_json(part: Part) -> list:
    """Convert a part to JSON."""
    return [*dataclasses.astuple(part)[:-1], list(part.offsets)]


def from_json(values: list) -> Part:
    """Convert JSON of `to_json` to a part."""
    return Part(*values[:-1], tuple(values[-1]))


class _Run:
    """A part while its frames are being counted."""

    def __init__(self, header, info):
        self.header, self.frames = header, 0
        self._info, self._offsets, self._end, self._gap = info, [], 0, None

    def add(self, offset, header, gap):
        if gap and self.frames and self._gap is None:
            self._gap = (self.frames, gap)
        if self.frames % _STRIDE == 0:
            self._offsets.append(offset)
        self.frames += 1
        self._end = offset + header.size

    def lose(self, gap):
        """Record that the frames end with bytes that are not audio."""
        self._gap = self._gap or (self.frames, gap)

    def part(self):
        samples = self.frames * self.header.samples
        skip, trail = (0, 0) if self._info is None else (self._info.skip, self._info.trail)
        length = max(0, samples - skip - trail)
        header = self.header
        return Part(
            header.sample_rate, header.channels, header.samples, skip, length, self.frames, self._end,
            tuple(self._offsets),
        )  # fmt: skip

    def damage(self):
        def second(frames):
            return f"{frames * self.header.samples / self.header.sample_rate:.1f} s"

        if self._gap is not None:
            return f"damaged: {self._gap[1]} bytes at {second(self._gap[0])} are not MPEG audio"
        declared = 0 if self._info is None or self._info.is_complete(self._offsets[0], self._end) else self._info.frames
        if self.frames < declared:
            return f"truncated: audio ends at {second(self.frames)} of {second(declared)}"
        return None


@dataclasses.dataclass(frozen=True)
class _Info:
    """A Xing, Info or VBRI header: the declared counts and encoder delays."""

    frames: int
    size: int  # bytes of the frames, with this one; 0 if not declared
    skip: int
    trail: int

    def is_complete(self, start, end):
        return self.size and end - start >= self.size - _MAX_FRAME


def _info(source, offset, header):
    at = offset + 4 + _side_size(header.stream)
    name = source.get(at, 4)
    if name in (b"Xing", b"Info"):
        data = source.get(at, header.size)
        flags = int.from_bytes(data[4:8])
        fields = [int.from_bytes(data[i : i + 4]) for i in (8, 12)]
        frames = fields.pop(0) if flags & 1 else 0
        size = fields.pop(0) if flags & 2 else 0
        lame = 8 + 4 * (flags & 1) + 4 * (flags >> 1 & 1) + 100 * (flags >> 2 & 1) + 4 * (flags >> 3 & 1)
        skip = trail = 0
        if lame + 24 <= header.size and data[lame : lame + 1] != b"\0":
            delays = int.from_bytes(data[lame + 21 : lame + 24])
            skip, trail = (delays >> 12) + _DECODER_DELAY, max(0, (delays & 0xFFF) - _DECODER_DELAY)
        return _Info(frames, size, skip, trail)
    if source.get(offset + 36, 4) == b"VBRI":
        size, frames = struct.unpack(">II", source.get(offset + 46, 8))
        return _Info(frames, size, 0, 0)
    return None


def _walk(source, offset, stream=None) -> Iterator[tuple[int, Header, int]]:
    """Iterate over `(offset, header, gap)` of the frames from an offset on.

    `gap` is the number of bytes before the frame that are neither audio nor a tag.
    """
    gap = candidates = 0
    while len(start := source.get(offset, 4)) == 4:
        header = _header(int.from_bytes(start))
        if header is not None and ((header.stream == stream and not gap) or _is_followed(source, offset, header)):
            if offset + header.size > source.size:
                return
            yield offset, header, gap
            stream, gap, candidates, offset = header.stream, 0, 0, offset + header.size
            continue
        tag = _tag_size(source, offset, start)
        if tag:
            offset += tag
            continue
        candidates += 1
        if candidates > _MAX_CANDIDATES:
            raise _LostError(gap)
        following = source.find_sync(offset + 1)
        gap += following - offset
        offset = following


def _is_followed(source, offset, header):
    """Whether another frame, a tag or the end of the file follows a frame."""
    after = offset + header.size
    start = source.get(after, 4)
    if len(start) < 4:
        return after == source.size
    following = _header(int.from_bytes(start))
    return (following is not None and following.stream == header.stream) or bool(_tag_size(source, after, start))


def _tag_size(source, offset, start):
    if start.startswith(b"ID3"):
        tag = source.get(offset, 10)
        if len(tag) == 10 and max(tag[6:]) < 128:
            return tag_size(tag)
    if start.startswith(b"TAG"):
        return 128
    if start == b"APET":
        tag = source.get(offset, 32)
        return 32 + int.from_bytes(tag[12:16], "little") if tag.startswith(b"APETAGEX") else 0
    return 0


@functools.lru_cache(4096)
def _header(bits: int) -> Header | None:
    """Parse the four bytes of a frame's header."""
    version, layer = bits >> 19 & 3, 4 - (bits >> 17 & 3)
    bitrate, rate = bits >> 12 & 15, bits >> 10 & 3
    if bits >> 21 != 0x7FF or version == 1 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    is_first = version == 3
    sample_rate = _RATES[version][rate]
    channels = 1 if bits >> 6 & 3 == 3 else 2
    samples = {1: 384, 2: 1152, 3: 1152 if is_first else 576}[layer]
    padding = bits >> 9 & 1
    bits_per_frame = samples * _BITRATES[is_first, layer][bitrate] * 1000
    size = (
        (bits_per_frame // sample_rate // 32 + padding) * 4
        if layer == 1
        else bits_per_frame // 8 // sample_rate + padding
    )
    stream = (version, layer, sample_rate, channels)
    start = 4 + _side_size(stream) + (0 if bits >> 16 & 1 else 2)
    return Header(stream, sample_rate, channels, samples, size, start, 0 if layer != 3 else 511 if is_first else 255)


def _side_size(stream):
    """Return the bytes of side information after the header of layer III."""
    version, layer, _, channels = stream
    if layer != 3:
        return 0
    return (32 if channels == 2 else 17) if version == 3 else (17 if channels == 2 else 9)


def _reservoir_start(headers, first):
    """Return the first frame in which the main data of frame `first` may begin."""
    missing = headers[first].reservoir
    while first > 0 and missing > 0:
        first -= 1
        missing -= headers[first].size - headers[first].start
    return first


def _silenced(frames, headers):
    """Return frames that only store main data for later ones, and decode to silence.

    Their own main data may begin before the first, which decoders report on stderr.
    """
    silenced, stored = [], 0
    for frame, header in zip(frames, headers, strict=True):
        side = _side_size(header.stream)
        # Side information begins with the number of earlier bytes, of 9 bits in MPEG-1 and 8 otherwise.
        earlier = min(stored, header.reservoir)
        begin = (earlier << 7 if header.reservoir == 511 else earlier << 8).to_bytes(2).ljust(side, b"\0")
        silenced.append(frame[:4] + begin + frame[4 + side :] if header.start == 4 + side else frame)
        stored += header.size - header.start
    return silenced


def _decode(frames, frame_samples):
    """Decode frames to `[samples, channels]`."""
    length = len(frames) * frame_samples
    with sound.open_sound(_Frames(b"".join([*frames, frames[-1]]))) as f:  # libmpg123 needs two frames to start
        audio = f.read(length, dtype="float32", always_2d=True)
    if len(audio) != length:
        raise DataError("damaged: its frames cannot be decoded")
    return audio


class _Frames(Reader):
    """Frames followed by zeros, so that the file is large.

    Decoders estimate the number of frames from the file's size and the first frame, and stop there.
    """

    def __init__(self, data):
        super().__init__(_STATED_SIZE)
        self._data = data

    def readinto(self, buffer):
        data = self._data[self._position : self._position + len(buffer)]
        buffer[:] = data.ljust(len(buffer), b"\0")
        self._position += len(buffer)
        return len(buffer)


class _Source:
    """The bytes of a file, read in blocks."""

    def __init__(self, file):
        self._file, self._data, self._start = file, b"", 0
        self.size = file.seek(0, io.SEEK_END)

    def get(self, offset, count):
        """Return up to `count` bytes at an offset."""
        at = offset - self._start
        if at < 0 or (at + count > len(self._data) and self._start + len(self._data) < self.size):
            self._data, self._start, at = read_at(self._file, offset, _BLOCK), offset, 0
        return self._data[at : at + count]

    def find_sync(self, offset):
        """Return the next offset at which a frame or a tag may begin.

        Without one, the result is the file's size.
        """
        while offset < self.size:
            data = self.get(offset, _SEARCHED)
            match = _SYNC.search(data)
            if match:
                return offset + match.start()
            offset += max(1, len(data) - 3)  # a tag's name may begin in the last bytes
        return self.size
