"""Shards: ArrayRecord files with a few seconds of audio per record.

Short records let a crop read little. A folder contains

- `shard-00000.arrayrecord` and so on,
- for each shard a `.json` with the positions of its records,
- `index.json`, the list of all tracks.

A record is four bytes of checksum (CRC-32, little endian), followed by an audio file. The file is FLAC with 16 or 24
bits if that is exact, else floating-point AU. Any reader of ArrayRecord can read the shards. The one here reads by byte
range, on this machine and behind URLs.

ArrayRecord files are Riegeli files (github.com/google/riegeli). A Riegeli file is a stream of chunks, interrupted by a
header of 24 bytes at every multiple of 64 KiB. Ungrouped, uncompressed records are stored verbatim.
"""

import dataclasses
import functools
import io
import json
import zlib
from pathlib import Path

import numpy as np
import soundfile

from audiovae_jax.data.audio import audio_file, remote
from audiovae_jax.data.audio.remote import RemoteFile, UnreachableError
from audiovae_jax.data.sets import catalog, probing
from audiovae_jax.data.sets.catalog import Catalog, Track
from audiovae_jax.errors import DataError, RootError, printable

INDEX = "index.json"
FORMAT, VERSION = "audiovae_jax.shards", 1
SUFFIX = ".arrayrecord"
WRITER_OPTIONS = "group_size:1,uncompressed"
_BLOCK, _BLOCK_HEADER = 1 << 16, 24
_MAX_LISTS = 256  # lists of record positions kept in memory


@dataclasses.dataclass(frozen=True)
class Shard:
    """An ArrayRecord file, and the list of its records' positions.

    Positions are in the file's stream without block headers.
    """

    place: Path | RemoteFile
    list_path: Path | str

    def read(self, first: int, count: int) -> list[bytes]:
        """Read consecutive records, without their checksums.

        Raises:
          DataError: a record is missing or corrupt.
        """
        positions = _positions(self)[first : first + count]
        if len(positions) < count:
            raise DataError(f"{printable(self.place)} has no records {first} to {first + count - 1}; write it again")
        start, stop = int(positions[0][0]), int(positions[-1].sum())
        stream = self._bytes(start, stop)
        records = []
        for i, (offset, size) in enumerate(positions):
            record = stream[offset - start : offset - start + size]
            if len(record) < 4 or zlib.crc32(record[4:]) != int.from_bytes(record[:4], "little"):
                raise DataError(f"{printable(self.place)}: record {first + i} is damaged (checksum); write it again")
            records.append(record[4:])
        return records

    def _bytes(self, start, stop):
        """Read a section of the stream, without block headers."""
        if isinstance(self.place, Path):
            with open(self.place, "rb") as f:
                return read_stream(f, start, stop)
        reader = self.place.open()
        reader.expect(_in_file(stop - 1) + 1 - _in_file(start))
        stream = read_stream(reader, start, stop)
        if reader.error is not None:
            raise reader.error
        return stream


@dataclasses.dataclass(frozen=True)
class ShardedAudio:
    """A track in consecutive records of a shard.

    Attributes:
      shard: the shard of the records.
      key: of the track.
      first_record: index of its first record in the shard.
      record_frames: samples of every record but the last.
      frames, sample_rate, channels, speakers: of the track.
    """

    shard: Shard
    key: str
    first_record: int
    record_frames: int
    frames: int
    sample_rate: int
    channels: int
    speakers: tuple[str, ...] | None = None

    @property
    def name(self) -> str:
        return f"{printable(self.shard.place)}/{printable(self.key)}"

    def read(self, start: int, count: int) -> np.ndarray:
        """Read `[count, C]` float32 from sample `start` on.

        Raises:
          DataError: the shard cannot be read, or a record is corrupt. The message names it.
        """
        first, last = start // self.record_frames, (start + count - 1) // self.record_frames
        try:
            records = self.shard.read(self.first_record + first, last - first + 1)
            pieces = []
            for i, record in enumerate(records, start=first):
                low = max(0, start - i * self.record_frames)
                high = min(self.record_frames, start + count - i * self.record_frames)
                with soundfile.SoundFile(io.BytesIO(record)) as f:
                    f.seek(low)
                    pieces.append(f.read(high - low, dtype="float32", always_2d=True))
        except UnreachableError:
            raise
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error
        except (OSError, soundfile.LibsndfileError) as error:
            raise DataError(f"{self.name}: {getattr(error, 'strerror', None) or error}") from error
        audio = np.concatenate(pieces)
        if audio.shape != (count, self.channels):
            raise DataError(f"{self.name}: its records do not match the index; write the shards again")
        return audio


def encode_record(audio: np.ndarray, sample_rate: int) -> bytes:
    """Encode `[T, C]` float32 losslessly as a record, as FLAC if possible."""
    kind = {"format": "AU", "subtype": "FLOAT"}  # a WAV of floats would contain the time of writing
    for bits, dtype in ((16, np.int16), (24, np.int32)):
        scaled = audio * np.float32(2 ** (bits - 1))
        limit = 2 ** (bits - 1)
        fits = (scaled == np.rint(scaled)).all() and -limit <= scaled.min(initial=0) <= scaled.max(initial=0) < limit
        if fits and audio.shape[1] <= 8 and sample_rate <= 655350:
            kind = {"format": "FLAC", "subtype": f"PCM_{bits}"}
            audio = scaled.astype(dtype) << (8 if bits == 24 else 0)
            break
    file = io.BytesIO()
    soundfile.write(file, audio, sample_rate, **kind)
    content = file.getvalue()
    return zlib.crc32(content).to_bytes(4, "little") + content


def read_stream(file, start: int, stop: int) -> bytes:
    """Read positions `start` to `stop` of an open Riegeli file's stream.

    The result is shorter if the stream ends before.
    """
    first = _in_file(start)
    file.seek(first)
    return without_headers(file.read(_in_file(stop - 1) + 1 - first), first)


def without_headers(raw: bytes, first: int = 0) -> bytes:
    """Remove block headers from a Riegeli file's bytes from position `first` on."""
    pieces, position = [], first
    while position < first + len(raw):
        offset = position % _BLOCK
        end = min(position - offset + _BLOCK, first + len(raw))
        pieces.append(raw[max(position, position - offset + _BLOCK_HEADER) - first : end - first])
        position = end
    return b"".join(pieces)


def is_shards(root: str, options: probing.Options) -> bool:
    """Return whether a root is a folder of these shards."""
    if remote.is_url(root):
        return remote.exists(f"{root.rstrip('/')}/{INDEX}", options.access)
    return (Path(remote.local_path(root)) / INDEX).is_file()


def scan(root: str, options: probing.Options) -> Catalog:
    """Scan a folder of shards.

    Tracks keep the order and split of the data set that the shards were made of.

    Raises:
      DataError: the index is missing, corrupt or of another format, or no track can be used.
    """
    base = root.rstrip("/") if remote.is_url(root) else Path(remote.local_path(root))
    text = probing.read(root, options, INDEX)
    try:
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise RootError(root, f"contains no audio: its {INDEX} is of {content['format']}")
        if content["version"] > VERSION:
            raise RootError(root, f"its {INDEX} is of a newer version of this program")
        if isinstance(base, str):
            there = {file.url: file for _, file in remote.list_files(base, options.access)}
            shards = [
                Shard(there.get(url, RemoteFile(url, 0, options.access)), f"{base}/{name}.json")
                for name, url in ((name, f"{base}/{name}{SUFFIX}") for name, _ in content["shards"])
            ]
        else:
            shards = [Shard(base / f"{name}{SUFFIX}", base / f"{name}.json") for name, _ in content["shards"]]
        tracks = []
        for track in content["tracks"]:
            audio = ShardedAudio(
                shards[track["shard"]], track["key"], track["first_record"], track["record_frames"],
                track["frames"], track["sample_rate"], track["channels"], tuple(track.get("speakers", ())) or None,
            )  # fmt: skip
            tracks.append((Track(track["key"], audio, track["weight"]), track["sides"]))
        mark = content["fingerprint"]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise RootError(root, f"its {INDEX} is damaged ({error!r}); write the shards again") from error
    skipped = []
    for shard, (_, size) in zip(shards, content["shards"], strict=True):
        if _size(shard.place) != size:
            skipped.append((printable(shard.place), f"is missing, or its size is not {size} bytes"))
    gone = {place for place, _ in skipped}
    sides: dict[str, list[Track]] = {"train": [], "validation": []}
    left_out = [name for name, _ in skipped]
    for track, of_track in tracks:
        if printable(track.audio.shard.place) in gone:
            continue
        try:
            audio_file.require_use(track.audio, options.min_seconds, options.channels)
        except DataError as error:
            skipped.append((track.audio.name, str(error)))
            left_out.append(track.key)
            continue
        for side in of_track:
            sides[side].append(track)
    if left_out:  # without these tracks it is another data set
        mark = catalog.digest("\n".join([mark, *left_out]))
    train, validation = tuple(sides["train"]), tuple(sides["validation"])
    catalog.require_tracks(train, skipped, root)
    catalog.require_tracks(validation, skipped, root)
    return Catalog(train, validation, tuple(skipped), mark, f"tracks in {len(shards)} shards under {root}")


@functools.lru_cache(maxsize=_MAX_LISTS)
def _positions(shard) -> np.ndarray:
    """Return `[records, 2]`: the position and size of each record in the stream."""
    try:
        if isinstance(shard.list_path, Path):
            text = shard.list_path.read_bytes()
        else:
            text = remote.read_bytes(shard.list_path, shard.place.access)
        return np.asarray(json.loads(text)["records"], np.int64).reshape(-1, 2)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{printable(shard.list_path)} is damaged ({error!r}); write the shards again") from error


def _size(place):
    if isinstance(place, RemoteFile):
        return place.size
    return place.stat().st_size if place.is_file() else None


def _in_file(position: int) -> int:
    return position + _BLOCK_HEADER * (position // (_BLOCK - _BLOCK_HEADER) + 1)
