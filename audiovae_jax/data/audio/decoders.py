"""Decoders: the samples of a file with exact random access, for every format."""

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile

from audiovae_jax.data.audio import channels
from audiovae_jax.data.audio.remote import RemoteFile
from audiovae_jax.data.audio.section import Section
from audiovae_jax.data.formats import caf, containers, flac, mp3, ogg, voc, wav
from audiovae_jax.data.formats.reader import Pieces, read_at
from audiovae_jax.data.formats.sound import open_sound, skip
from audiovae_jax.errors import DataError

# The location of a file: on this machine, behind a URL, or in an archive.
Place = Path | RemoteFile | Section
# How a file is decoded, found by a scan, as JSON; None for libsndfile alone.
Index = dict[str, Any] | None

_MPEG_SUFFIXES = (".mp3", ".mp2", ".mp1", ".mpga")
_MAX_FRAMES = 1 << 50  # a larger number of samples means that the length is unknown
_BLOCK = 1 << 18  # samples


class Decoder(Protocol):
    """The samples of an open file.

    Attributes:
      frames: samples per channel.
      sample_rate: in Hz.
      channels: number of channels.
      speakers: names of the channels (see `channels.of_file`), or None.
      index: what `open_decoder` needs to open the file again without a scan.
      damage: what a scan found missing, or None.
      format: libsndfile's name of the format; None if another decoder was chosen.
    """

    frames: int
    sample_rate: int
    channels: int
    speakers: tuple[str, ...] | None
    index: Index
    damage: str | None
    format: str | None

    def read(self, start: int, count: int) -> np.ndarray:
        """Return `[count, channels]` float32 from sample `start` on.

        The result is shorter at the end of the audio.
        """


@contextlib.contextmanager
def scan(place: Place) -> Iterator[Decoder]:
    """Open a file of unknown format. The scan of some formats reads the whole file.

    Raises:
      DataError, soundfile.LibsndfileError: it is not audio.
    """
    with _opened(place) as file, contextlib.closing(_scanned(place, file)) as decoder:
        if decoder.format == "FLAC" and decoder.channels > 2:
            mask = flac.channel_mask(file, mp3.tags_size(file))
            decoder.speakers = channels.in_mask(mask or 0, decoder.channels) or decoder.speakers
        yield decoder


@contextlib.contextmanager
def open_decoder(place: Place, index: Index) -> Iterator[Decoder]:
    """Open a file that was scanned before, with its decoder's index.

    Raises:
      DataError, soundfile.LibsndfileError: the file has changed.
      OSError: the operating system cannot open the file.
    """
    if index is None and isinstance(place, Path):  # libsndfile opens the file itself, which saves an opening
        try:
            with contextlib.closing(_Sound(place, None)) as decoder:
                yield decoder
        except soundfile.LibsndfileError:
            with open(place, "rb"):  # raises the system's error, which libsndfile does not distinguish
                pass
            raise
        return
    with _opened(place) as file, contextlib.closing(_indexed(place, file, index)) as decoder:
        yield decoder


def expect(decoder: Decoder, size: int):
    """Announce a read of about `size` bytes, which a remote file fetches at once."""
    getattr(decoder.file, "expect", lambda size: None)(size)


@contextlib.contextmanager
def _opened(place) -> Iterator[BinaryIO]:
    """Open the bytes of a place.

    Errors of a remote reader replace those of a decoder.
    """
    with open(place, "rb") if isinstance(place, Path) else contextlib.closing(place.open()) as file:
        try:
            yield file
        except (soundfile.LibsndfileError, DataError) as error:
            # A decoder only sees an early end of the file. The reader knows the cause.
            cause = getattr(file, "error", None)
            if cause is None:
                raise
            raise cause from error


def _scanned(place, file):
    begin = mp3.tags_size(file)
    start = read_at(file, begin, 16)
    if container := containers.recognise(start):
        return _container(file, *container)
    name = start[:4]
    if mp3.is_frame(start) or (place.suffix.lower() in _MPEG_SUFFIXES and name not in (b"RIFF", b"fLaC", b"OggS")):
        found = mp3.scan(file)
        return _Parts(file, found.parts, {"mp3": [mp3.to_json(part) for part in found.parts]}, found.damage)
    if name == b"OggS":
        found = ogg.scan(file)
        index = {"ogg": [ogg.to_json(link) for link in found.links]}
        return _ogg(file, found.links, index, found.damage)
    pieces = None
    if name in (b"RIFF", b"RF64", b"BW64"):
        pieces = wav.repair(file, begin)
    elif name == b"caff":
        pieces = caf.repair(file)
    if begin and not pieces:  # libsndfile skips one tag, and in a reader it loses as many bytes at the end
        pieces = [[begin, file.seek(0, os.SEEK_END) - begin]]
    if name == voc.MARK and voc.is_split(file):
        return _container(file, "voc", "VOC in several blocks")
    try:
        sound = _indexed(place, file, {"pieces": pieces}) if pieces else _Sound(place, file)
    except soundfile.LibsndfileError:
        if name == b"caff":  # with AAC, or with ALAC as FFmpeg writes it
            return _container(file, "caf", "this CAF")
        raise
    if sound.is_mpeg:
        raise DataError("MP3 in another format cannot be read exactly; convert it to FLAC")
    if sound.frames > _MAX_FRAMES:
        sound.frames = count(place, sound.index)
        if sound.frames >= containers.MAX_COUNTED:
            raise DataError(f"its length is unknown, and above {containers.MAX_COUNTED} samples")
        if name == b"fLaC" and sound.frames:
            sound.close()
            return _indexed(place, file, {"pieces": flac.with_length(file, sound.frames, begin)})
        sound.index = {**(sound.index or {}), "frames": sound.frames}
    if not sound.is_seekable:
        sound.index = {**(sound.index or {}), "sequential": True}
    return sound


def _indexed(place, file, index):
    match index:
        case {"mp3": parts}:
            return _Parts(file, [mp3.from_json(part) for part in parts], index)
        case {"container": [name, title, frames]}:
            return _container(file, name, title, frames)
        case {"ogg": links}:
            return _ogg(file, [ogg.from_json(link) for link in links], index)
        case {"pieces": pieces}:
            return _Sound(None, Pieces(file, pieces), index.get("frames"), index)
        case {"frames": frames}:
            return _Sound(place, file, frames, index)
        case _:
            return _Sound(place, file, None, index)


def _container(file, *options):
    decoder = containers.ContainerDecoder(file, *options)
    decoder.speakers = channels.named(decoder.speakers)
    return decoder


def _ogg(file, links, index, damage=None):
    decoder = _Parts(file, [ogg.LinkDecoder(link) for link in links], index, damage)
    decoder.speakers = channels.in_vorbis(decoder.channels)
    return decoder


def count(place: Place, index: Index) -> int:
    """Return the number of samples that can be decoded from the beginning on."""
    with open_decoder(place, index) as decoder:
        done, failed = _count(decoder, 0, _BLOCK)
    while failed > 1:  # a decoder that has failed cannot go on, so look closer with another
        smaller = max(1, failed // 64)
        with open_decoder(place, index) as decoder:
            done, failed = _count(decoder, done, smaller)
    return done


def _count(decoder, start, size):
    """Count samples in blocks of `size`, from sample `start` on.

    Returns `(samples, size of the block that failed)`.
    """
    end = decoder.frames if decoder.frames <= _MAX_FRAMES else containers.MAX_COUNTED
    try:
        for first in range(0, start, _BLOCK):  # without a seek, which damage may prevent
            decoder.read(first, min(_BLOCK, start - first))
        while start < end and len(block := decoder.read(start, min(size, end - start))):
            start += len(block)
    except (soundfile.LibsndfileError, DataError):
        return start, size
    return start, 0


class _Sound:
    """A file that libsndfile decodes."""

    damage = None

    def __init__(self, place, file, frames=None, index=None):
        self.file, self.index = file, index
        self._open = lambda: open_sound(place if isinstance(place, Path) else file)
        self._sound = self._open()
        self.frames = self._sound.frames if frames is None else frames
        self.sample_rate, self.channels = self._sound.samplerate, self._sound.channels
        self.speakers, self.format = channels.of_file(self._sound), self._sound.format
        subtype = self._sound.subtype
        self.is_mpeg = subtype.startswith("MPEG")
        # DWVW only seeks to its beginning.
        self.is_seekable = self._sound.seekable() and not subtype.startswith("DWVW")
        self._position = 0

    def read(self, start, count):
        if start != self._position:
            self._go_to(start)
        self._position = None  # if reading fails
        block = self._sound.read(count, dtype="float32", always_2d=True)
        self._position = start + len(block)
        return block

    def _go_to(self, start):
        if self.is_seekable:
            self._sound.seek(start)
        else:
            self._skip_to(start)

    def _skip_to(self, start):
        """Decode up to a sample, from the beginning if it has passed."""
        if self._position is None or start < self._position:
            self._sound.close()
            self._sound, self._position = self._open(), 0
        skip(self._sound, start - self._position)

    def close(self):
        self._sound.close()


class _Parts:
    """Consecutive parts of a file.

    Each has `sample_rate`, `channels`, `length` and `read(file, start, count)`.

    Raises:
      DataError: their rates or channels differ.
    """

    speakers, format = None, None

    def __init__(self, file, parts: Sequence, index, damage=None):
        self.file, self.index, self.damage, self._parts = file, index, damage, parts
        self.sample_rate, self.channels = parts[0].sample_rate, parts[0].channels
        self.frames = 0
        for part in parts:
            if (part.sample_rate, part.channels) != (self.sample_rate, self.channels):
                raise DataError(
                    f"its part from {self.frames / self.sample_rate:.1f} s on has {part.sample_rate} Hz and "
                    f"{part.channels} channels, the part before {self.sample_rate} Hz and {self.channels}; split it"
                )
            self.frames += part.length

    def read(self, start, count):
        blocks = []
        for part in self._parts:
            stop = min(part.length, start + count)
            if start < part.length and stop > start:
                blocks.append(part.read(self.file, start, stop - start))
                count -= stop - start
            start = max(0, start - part.length)
        return np.concatenate(blocks) if blocks else np.zeros((0, self.channels), np.float32)

    def close(self):
        for part in self._parts:
            getattr(part, "close", lambda: None)()
