"""Ogg (RFC 3533): finding the links of a file, and decoding ranges exactly.

A chained file consists of links, which are complete streams one after another. libsndfile seeks in Vorbis to wrong
samples, and it starts Opus too close to the range. Therefore this module finds the pages once. It then decodes Vorbis
from a page whose first sample is known, and Opus from far enough back.
"""

import bisect
import dataclasses
import io
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from audiovae_jax.data.formats import sound
from audiovae_jax.data.formats.reader import Pieces, read_at
from audiovae_jax.errors import DataError

_BUFFER = 1 << 20  # bytes per read of a scan
_MAX_PAGE = 27 + 255 + 255 * 255  # bytes
_OPEN_END = 1 << 40  # a granule position past every stream's end
_RESTART_SECONDS = 4
_CHECKED_SECONDS = 0.5  # duration of equal samples that proves that a decoder has converged
# Without SILK, an Opus decoder's error halves with every frame (RFC 6716, section 4.3.2.1). 0.1 s were enough in
# measurements of 2.5 to 60 ms frames at 16 to 500 kbit/s.
_PREROLL_SECONDS = 0.5
_CONTINUED, _FIRST, _LAST = 1, 2, 4  # flags of a page
# By the start of a stream's first packet: name, number of header packets, and the most samples per packet.
_CODECS = {
    b"\x01vorbis": ("vorbis", 3, 8192),
    b"OpusHead": ("opus", 2, 5760),
}
_OTHER_CODECS = {
    b"\x7fFLAC": "FLAC",
    b"Speex   ": "Speex",
    b"\x80theora": "Theora video",
    b"OVP80": "VP8 video",
    b"BBCD": "Dirac video",
    b"fishead": "Skeleton",
    b"\x80kate": "Kate subtitles",
    b"PCM     ": "PCM",
}


@dataclasses.dataclass(frozen=True)
class Link:
    """A stream in a file.

    Attributes:
      codec: "vorbis" or "opus".
      sample_rate: in Hz.
      channels: number of channels.
      length: samples of the audio.
      begin, audio, end: offsets in bytes of the first page, the first page of audio, and the end of the last.
      offsets: Vorbis: of pages about a second apart, and of the last, in bytes.
      positions: Vorbis: samples before the end of each of these pages. Opus with SILK: samples that are exact if
        decoding starts shortly before them.
    """

    codec: str
    sample_rate: int
    channels: int
    length: int
    begin: int
    audio: int
    end: int
    offsets: tuple[int, ...] = ()
    positions: tuple[int, ...] = ()


class LinkDecoder:
    """The samples of a link.

    Attributes:
      sample_rate, channels, length: as in `Link`.
    """

    def __init__(self, link: Link):
        self.sample_rate, self.channels, self.length = link.sample_rate, link.channels, link.length
        self._link, self._sound, self._position = link, None, 0

    def read(self, file: BinaryIO, start: int, count: int) -> np.ndarray:
        """Decode `[count, channels]` float32 from sample `start` on.

        The result equals that slice of the decoded link, for any range.
        """
        if self._link.codec == "vorbis":
            return self._read_vorbis(file, start, count)
        if self._sound is None:
            self._sound = _open(file, self._link.begin, self._link.end)
        if start != self._position:
            earlier = self._earlier(start)
            self._sound.seek(earlier)
            sound.skip(self._sound, start - earlier)
        block = self._sound.read(count, dtype="float32", always_2d=True)
        self._position = start + len(block)
        return block

    def _earlier(self, start):
        """Return the sample to start decoding from."""
        restarts = self._link.positions
        if restarts:
            start = restarts[bisect.bisect_right(restarts, start) - 1]
        return max(0, start - int(_PREROLL_SECONDS * self.sample_rate))

    def _read_vorbis(self, file, start, count):
        """Decode from the last page in the table before the range to the first after it."""
        link, positions = self._link, self._link.positions
        before = bisect.bisect_right(positions, start) - 1
        after = min(bisect.bisect_left(positions, start + count), len(positions) - 1)
        begin, position = (link.offsets[before], positions[before]) if before >= 0 else (link.audio, 0)
        last = link.offsets[after] - begin
        pages = read_at(file, begin, last + _MAX_PAGE)
        first, final = _page(pages) if before >= 0 else b"", _page(pages[last:])
        if first is None or final is None:
            raise DataError("damaged: a page is corrupt; has the file changed?")
        headers = read_at(file, link.begin, link.audio - link.begin)
        data = headers + (_last_packet(first) if first else b"") + pages[len(first) : last] + _open_ended(final)
        with sound.open_sound(io.BytesIO(data)) as f:
            sound.skip(f, start - position)
            return f.read(count, dtype="float32", always_2d=True)

    def close(self):
        if self._sound is not None:
            self._sound.close()


@dataclasses.dataclass(frozen=True)
class Scan:
    """The links of a file.

    Attributes:
      links: in their order, up to the damage.
      damage: what is missing, with the second, or None.
    """

    links: tuple[Link, ...]
    damage: str | None


def scan(file: BinaryIO) -> Scan:
    """Find the links of a file. All pages are read, and their checksums verified.

    Raises:
      DataError, soundfile.LibsndfileError: it contains no readable audio, or several streams at once.
    """
    links, stream, damage = [], None, None
    for page in _pages(file):
        if page is None:
            damage = "a page is cut or corrupt"
        elif page.flags & _FIRST:
            if stream is not None and not stream.has_pages:
                names = f"{stream.name}, {_name(page)}"
                raise DataError(f"not audio that can be read (Ogg with several streams: {names}); extract the audio")
            if stream is not None:
                links.append(stream.link(file))
            stream = _Stream(page)
        else:
            damage = "its first page is missing" if stream is None else stream.add(page)
        if damage:
            break
    if stream is not None:
        links.append(stream.link(file))
    links = [link for link in links if link is not None]
    if not links:
        raise DataError("damaged: " + damage if damage else "contains no samples")
    if damage:
        seconds = sum(link.length / link.sample_rate for link in links)
        damage = f"damaged or truncated: {damage}; audio ends at {seconds:.1f} s"
    return Scan(tuple(links), damage)


def to_json(link: Link) -> list:
    """Convert a link to JSON."""
    return [list(value) if isinstance(value, tuple) else value for value in dataclasses.astuple(link)]


def from_json(values: list) -> Link:
    """Convert JSON of `to_json` to a link."""
    return Link(*[tuple(value) if isinstance(value, list) else value for value in values])


@dataclasses.dataclass(frozen=True)
class _Page:
    """A page: its header's fields, the sizes of its segments, and its body."""

    offset: int
    end: int
    flags: int
    granule: int
    serial: int
    sequence: int
    segments: bytes
    body: bytes

    @property
    def packets(self):
        """Number of packets that end in the page."""
        return len(self.segments) - self.segments.count(255)


def _pages(file) -> Iterator[_Page | None]:
    """Iterate over the intact pages.

    None stands for a corrupt page, and ends the iteration.
    """
    file.seek(0)
    buffered = io.BufferedReader(file, _BUFFER)
    try:
        offset = _next_page(buffered, 0)
        while offset is not None:
            buffered.seek(offset)
            data = _page(buffered.read(_MAX_PAGE))
            if data is None:
                yield None
                return
            flags, granule, serial, sequence = struct.unpack("<xBqII", data[4:22])
            body = 27 + data[26]
            end = offset + len(data)
            yield _Page(offset, end, flags, granule, serial, sequence, data[27:body], data[body:])
            offset = _next_page(buffered, end)
    finally:
        buffered.detach()


def _next_page(file, offset):
    """Return the offset of the next page's name from an offset on, or None."""
    file.seek(offset)
    data = file.read(4)
    while len(data) >= 4:
        found = data.find(b"OggS")
        if found >= 0:
            return offset + found
        offset += len(data) - 3  # the name may begin in the last bytes
        data = data[-3:] + file.read(_BUFFER)
    return None


def _page(data):
    """Return the page at the beginning of some bytes, or None if it is not intact."""
    if len(data) < 27 or data[4]:
        return None
    body = 27 + data[26]
    size = body + sum(data[27:body])
    page = data[:size]
    if len(page) < size or _checked(page) != page:
        return None
    return page


_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def _checked(page):
    """Return a page with its checksum.

    The checksum is CRC-32 with the opposite order of bits.
    """
    crc = zlib.crc32((page[:22] + bytes(4) + page[26:]).translate(_REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return page[:22] + crc.to_bytes(4).translate(_REVERSED) + page[26:]


def _open_ended(page):
    """Return a page that is not the last, so that its position cuts no samples."""
    return _checked(page[:5] + bytes([page[5] & ~_LAST]) + struct.pack("<q", _OPEN_END) + page[14:])


def _last_packet(page):
    """Return a page without the packets before the last that ends in it.

    A Vorbis decoder returns nothing for the first packet, so its first sample follows the page's position.
    """
    segments = page[27 : 27 + page[26]]
    first = _last_packet_segment(segments)
    body = 27 + len(segments) + sum(segments[:first])
    header = page[:5] + b"\0" + page[6:26] + bytes([len(segments) - first])
    return _checked(header + segments[first:] + page[body:])


def _last_packet_segment(segments):
    """Return the first segment of the last packet that ends in a page."""
    ends = [i for i, size in enumerate(segments) if size < 255]
    return ends[-2] + 1 if len(ends) > 1 else 0


class _Stream:
    """A link while its pages are being read."""

    def __init__(self, page):
        self.name, self.has_pages = _name(page), False
        self._codec = next((codec for start, codec in _CODECS.items() if page.body.startswith(start)), None)
        if self.name == "Vorbis" and len(page.body) >= 29:
            self._codec = ("vorbis", 3, (1 << (page.body[28] >> 4)) // 2)  # half of a long block
        self._serial, self._sequence, self._begin = page.serial, page.sequence, page.offset
        self._packets, self._audio, self._end = page.packets, None, page.end
        self._rate = int.from_bytes(page.body[12:16], "little")  # of Vorbis
        self._first = self._granule = self._is_silk = None
        self._entries, self._last = [], None

    def add(self, page) -> str | None:
        """Add a page, or return what is missing before it."""
        if self._codec is None:
            raise DataError(f"not audio that can be read (Ogg with {self.name}); convert it to FLAC")
        self.has_pages = True
        codec, headers, most = self._codec
        if page.serial != self._serial:
            return "a page belongs to none of its streams"
        if page.sequence != self._sequence + 1 and self._first is not None:
            return "pages are missing"
        self._sequence = page.sequence
        self._packets += page.packets
        if self._audio is None:
            if self._packets >= headers:
                self._audio, self._packets = page.end, 0
            self._end = page.end
            return None
        self._is_silk = self._is_silk or (codec == "opus" and _has_silk(page))
        if page.granule >= 0 and page.packets:
            step = 0 if self._granule is None else page.granule - self._granule
            if step > self._packets * most or (step < 0 and not page.flags & _LAST):
                return "the positions of its pages jump"
            self._packets = 0
            self._add_entry(page)
        self._end = page.end
        return None

    def _add_entry(self, page):
        self._last = page
        if self._first is None:
            self._first = page
        else:
            is_inside = not page.flags & _CONTINUED or page.packets > 1
            latest = self._entries[-1][1] if self._entries else self._first.granule
            if is_inside and page.granule - latest >= self._rate:
                self._entries.append((page.offset, page.granule))
        self._granule = page.granule

    def link(self, file) -> Link | None:
        """Return the link, or None if it contains no audio."""
        if self._first is None:
            return None
        codec = self._codec[0]
        with _open(file, self._begin, self._end) as f:
            link = Link(codec, f.samplerate, f.channels, f.frames, self._begin, self._audio, self._end)
            if codec == "vorbis":
                return self._vorbis(file, link)
            if self._is_silk:
                return dataclasses.replace(link, positions=tuple(_restarts(file, link, f)))
            return link

    def _vorbis(self, file, link):
        """Return a link with the table of its pages."""
        first = self._first
        page = _page(read_at(file, first.offset, first.end - first.offset))
        data = read_at(file, self._begin, first.offset - self._begin) + _open_ended(page)
        with sound.open_sound(io.BytesIO(data)) as f:
            decoded = sound.skip(f, _OPEN_END)
        # A stream may begin at any position, or before 0, which cuts its first samples.
        origin = max(0, first.granule - decoded)
        length = self._granule - origin
        entries = [(offset, granule - origin) for offset, granule in self._entries if granule - origin < length]
        entries.append((self._last.offset, length))
        offsets, positions = zip(*entries, strict=True)
        return dataclasses.replace(link, length=length, offsets=offsets, positions=positions)


def _restarts(file, link, f):
    """Return samples that are exact if decoding starts shortly before them.

    SILK predicts each period of a voice from the one before. A decoder that starts in a lasting tone never converges.
    """
    step, checked = (int(seconds * link.sample_rate) for seconds in (_RESTART_SECONDS, _CHECKED_SECONDS))
    restarts, position = [0], 0
    for start in range(step, link.length - checked, step):
        sound.skip(f, start - position)
        expected = f.read(checked, dtype="float32", always_2d=True)
        if len(expected) < checked:
            break
        position = start + checked
        decoder = LinkDecoder(dataclasses.replace(link, positions=(start,)))
        if np.array_equal(decoder.read(file, start, checked), expected):
            restarts.append(start)
    return restarts


def _has_silk(page):
    """Return whether a packet that begins in a page uses SILK.

    SILK may be used alone or with CELT (RFC 6716, section 3.1).
    """
    at, begins = 0, not page.flags & _CONTINUED
    for size in page.segments:
        if begins and size and page.body[at] >> 3 < 16:
            return True
        at, begins = at + size, size < 255
    return False


def _name(page):
    names = {start: codec[0].title() for start, codec in _CODECS.items()} | _OTHER_CODECS
    return next((name for start, name in names.items() if page.body.startswith(start)), "an unknown codec")


def _open(file, begin, end):
    f = sound.open_sound(Pieces(file, [[begin, end - begin]]))
    f.seek(0)  # drops the samples that Opus declares as skipped, also if the positions do not begin at 0
    return f
