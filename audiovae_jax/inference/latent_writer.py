"""Encodes a data set to shards of latents, in parallel over threads and hosts.

A stopped run can be resumed.

The folder contains the shards `shard-00000.arrayrecord` and so on. For each shard, a `.json` file lists its tracks and
the positions of its records. `index.json` lists all tracks, and is written once all shards exist. The tracks of a
shard depend only on the data set and the settings, so hosts and resumed runs agree without communication.
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import tqdm

from audiovae_jax.data.audio import remote, stream
from audiovae_jax.data.sets import sharding, shards
from audiovae_jax.data.sets.catalog import Catalog
from audiovae_jax.errors import DataError, printable, whole_number
from audiovae_jax.inference import latent_records, track_stream
from audiovae_jax.inference.codec import Codec
from audiovae_jax.storage import atomic

FORMAT, VERSION = "audiovae_jax.latents", 1


@dataclasses.dataclass(frozen=True)
class LatentFormat:
    """Format of the stored latents of a data set.

    Attributes:
      what: "posterior" stores mean and log-variance; "samples" stores one sample.
      storage_dtype: "float32", "float16" or "bfloat16".
      seed: seed of the samples; without effect on a stored posterior.
      mix: mix channels down or up to the model's, see `Codec.encode`.
      record_frames: latent frames per record.
      shard_bytes: approximate size of a shard in bytes.

    Raises:
      DataError: a value is invalid.
    """

    what: str = "posterior"
    storage_dtype: str = "float32"
    seed: int = 0
    mix: bool = False
    record_frames: int = 256
    shard_bytes: int = 256_000_000

    def __post_init__(self):
        if self.what not in latent_records.ARRAYS:
            raise DataError(f"what={self.what!r} must be one of {', '.join(latent_records.ARRAYS)}")
        if self.storage_dtype not in latent_records.DTYPES:
            raise DataError(f"storage_dtype={self.storage_dtype!r} must be one of {', '.join(latent_records.DTYPES)}")
        whole_number(self.seed, "seed", DataError, least=0, most=2**32 - 1)
        whole_number(self.record_frames, "record_frames", DataError)
        whole_number(self.shard_bytes, "shard_bytes", DataError)


def track_key(seed: int, key: str) -> jax.Array:
    """Return the key that a track is sampled with.

    `Codec.encode(audio, key=track_key(seed, key))` returns the same sample.
    """
    number = int.from_bytes(hashlib.sha256(os.fsencode(key)).digest()[:4], "little")
    return jax.random.fold_in(jax.random.key(seed), np.uint32(number))


def write(
    codec: Codec,
    catalog: Catalog,
    folder: Path,
    form: LatentFormat | None = None,
    *,
    host_index: int = 0,
    host_count: int = 1,
    num_threads: int = 2,
    read_timeout: float = 0.0,
    say: Callable[[str], None] = print,
) -> bool:
    """Encode a data set to shards of latents in `folder`.

    Host `i` of `n` writes the shards `i`, `i + n` and so on. A host that finds all shards complete writes the index.
    Complete shards are kept. Unreadable tracks are left out and reported.

    Args:
      codec: the model. The windows of a track are computed on all devices of this host.
      catalog: the data set.
      folder: created if missing; the same folder for all hosts.
      form: the format of the latents; by default `LatentFormat()`.
      host_index, host_count: index of this host, and number of hosts.
      num_threads: shards written at once. The audio of one is read while another is computed.
      read_timeout: seconds after which a read times out and its track is left out; 0 for no limit.
      say: called with each line of the report.

    Returns:
      Whether the index was written. If not, other hosts are not finished.

    Raises:
      DataError: no track could be read, a server does not respond, the folder belongs to another model, data set or
        settings, or the folder cannot be written.
    """
    form = form or LatentFormat()
    whole_number(host_count, "host_count", DataError)
    whole_number(host_index, "host_index", DataError, least=0, most=host_count - 1)
    plan = _Plan(codec, catalog, folder, form, read_timeout)
    sharding.claim(folder, plan.settings)
    waiting = [i for i in range(host_index, len(plan.groups), host_count) if plan.listing(i) is None]
    started, encoded = time.monotonic(), 0.0
    try:
        if waiting:
            encoded = _write_shards(codec, plan, waiting, num_threads)
        listings = [plan.listing(i) for i in range(len(plan.groups))]
        missing = [i for i, listing in enumerate(listings) if listing is None]
        done = plan.index(listings) if not missing else None
    except OSError as error:
        raise DataError(f"{printable(folder)}: {error.strerror or error}; {_RESUMABLE}") from error
    _report(plan, [listings[i] for i in range(host_index, len(listings), host_count)], catalog, say)
    speed = f", {encoded / max(1e-9, time.monotonic() - started):.1f} times real time" if encoded else ""
    if done is None:
        say(
            f"host {host_index} of {host_count} is done{speed}; {len(missing)} of {len(listings)} shards are still "
            f"missing, and the host that writes the last one writes {shards.INDEX}"
        )
        return False
    say(f"{done} in {printable(folder)}{speed}")
    return True


_RESUMABLE = "the files written so far are complete; run the same command to resume"
_BAR = "{l_bar}{bar}| {n:.1f}/{total:.1f} min of audio [{elapsed}<{remaining}]"
_MAX_IN_MEMORY = 1 << 26  # bytes of a track's records; larger ones go to a temporary file


class _Plan:
    """The planned content of a folder: its settings, and the tracks of each shard."""

    def __init__(self, codec, catalog, folder, form, read_timeout):
        self.folder, self.form, self.read_timeout = folder, form, read_timeout
        self.tracks, self.sides = sharding.by_key(catalog)
        itemsize = latent_records.DTYPES[form.storage_dtype].itemsize * len(latent_records.ARRAYS[form.what])

        def size_of(track):
            lanes = track.audio.channels if codec.model.in_channels == 1 else 1
            samples = stream.resampled_length(track.audio.frames, track.audio.sample_rate, codec.sample_rate)
            return -(-samples // codec.model.hop_length) * lanes * codec.model.latent_dim * itemsize

        self.groups = sharding.groups(list(self.tracks.values()), size_of, form.shard_bytes)
        self.names = [f"shard-{i:05d}" for i in range(len(self.groups))]
        statistics = codec.variables["latent_statistics"]
        listed = json.dumps([[key, self.sides[key], track.weight] for key, track in self.tracks.items()])
        self.settings = {
            "format": FORMAT,
            "model": codec.fingerprint,
            "model_dtype": np.dtype(codec.model.dtype).name,
            # Rounding depends on the windows.
            **codec.windows,
            "hop_length": codec.model.hop_length,
            "latent_dim": codec.model.latent_dim,
            "sample_rate": codec.sample_rate,
            "data_set": catalog.fingerprint,
            "sides": hashlib.sha256(listed.encode()).hexdigest()[:16],
            "what": form.what,
            "storage_dtype": form.storage_dtype,
            "seed": form.seed if form.what == "samples" else None,
            "mix": form.mix,
            "record_frames": form.record_frames,
            "shard_bytes": form.shard_bytes,
        }
        self.statistics = {name: np.asarray(value).tolist() for name, value in sorted(statistics.items())}

    def shard(self, i) -> Path:
        return self.folder / f"{self.names[i]}{shards.SUFFIX}"

    def listing(self, i) -> dict | None:
        """Return the listing of a shard, or None if the shard is not complete."""
        try:
            content = json.loads((self.folder / f"{self.names[i]}.json").read_text())
            whole = content["bytes"] == self.shard(i).stat().st_size and content["model"] == self.settings["model"]
            return content if whole and content["of"] == [track.key for track in self.groups[i]] else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def index(self, listings) -> str:
        """Write the index, and return a summary of it."""
        entries = [
            {**entry, "shard": i, "weight": self.tracks[entry["key"]].weight, "sides": self.sides[entry["key"]]}
            for i, listing in enumerate(listings)
            for entry in listing["tracks"]
        ]
        if not entries:
            reasons = [f"{name}: {why}" for listing in listings for name, why in listing["skipped"]]
            raise DataError("no track could be encoded: " + "; ".join(reasons[:5]))
        content = {
            **self.settings,
            "version": VERSION,
            **self.statistics,
            "shards": [[name, listing["bytes"]] for name, listing in zip(self.names, listings, strict=True)],
            "tracks": entries,
        }
        sharding.put(self.folder / shards.INDEX, json.dumps(content))
        sharding.finish(self.folder)
        hours = sum(entry["length"] / entry["sample_rate"] for entry in entries) / 3600
        size = sum(listing["bytes"] for listing in listings)
        return f"{len(entries)} tracks, {hours:.2f} hours, {size / 1e6:.1f} MB in {len(listings)} shards"


def _report(plan, listings, catalog, say):
    skipped = [(printable(name), reason) for name, reason in catalog.skipped]
    for listing in listings:
        skipped += [] if listing is None else listing["skipped"]
    for name, reason in skipped:
        say(f"left out {reason if name in reason else f'{name}: {reason}'}")


def _write_shards(codec, plan, numbers, num_threads) -> float:
    """Write shards, and return the seconds of audio that were encoded."""
    ended = threading.Event()
    total = sum(track.seconds for i in numbers for track in plan.groups[i])
    with tqdm.tqdm(total=total / 60, bar_format=_BAR, dynamic_ncols=True) as bar:
        lock = threading.Lock()

        def progress(seconds):
            if ended.is_set():
                raise _EndedError
            with lock:
                bar.update(min(seconds / 60, bar.total - bar.n))

        with concurrent.futures.ThreadPoolExecutor(max(1, num_threads)) as pool:
            jobs = [pool.submit(_write_shard, codec, plan, i, progress) for i in numbers]
            try:
                for job in concurrent.futures.as_completed(jobs):
                    job.result()
            except BaseException:
                ended.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    return sum(job.result() for job in jobs)


class _EndedError(Exception):
    """Stops a thread after another shard has failed, or the user has interrupted."""


def _write_shard(codec, plan, i, progress) -> float:
    """Write one shard and its listing, and return its seconds of audio."""
    for left in plan.folder.glob(f".{plan.names[i]}.*"):  # leftovers of a killed run may be large
        left.unlink(missing_ok=True)
    entries, skipped, records = [], [], []
    with atomic.replacing(plan.shard(i)) as temporary:
        with _array_record(temporary, plan.shard(i)) as write_record:
            for track in plan.groups[i]:
                # Buffer the track, so that one that fails near its end leaves nothing in the shard.
                with tempfile.SpooledTemporaryFile(_MAX_IN_MEMORY, dir=plan.folder) as spool:
                    try:
                        entry, written = _encode_track(codec, plan, track, spool, progress)
                    except remote.UnreachableError:  # not a fault of the track; the run can be resumed later
                        raise
                    except DataError as error:
                        skipped.append((printable(track.key), str(error)))
                        continue
                    entries.append({**entry, "first_record": len(records)})
                    records += written
                    spool.seek(0)
                    for size, _ in written:
                        write_record(spool.read(size))
        positions = sharding.positions(temporary, records)
    content = {
        "model": plan.settings["model"],
        "bytes": plan.shard(i).stat().st_size,
        "of": [track.key for track in plan.groups[i]],
        "tracks": entries,
        "skipped": skipped,
        "records": positions,
    }
    with atomic.replacing(plan.folder / f"{plan.names[i]}.json") as temporary:
        temporary.write_text(json.dumps(content))
    return sum(plan.tracks[entry["key"]].seconds for entry in entries)


@contextlib.contextmanager
def _array_record(path, target) -> Iterator[Callable[[bytes], None]]:
    """A context with a function that writes a record to `path`, later `target`."""
    from array_record.python import array_record_module

    def said(function, *args):
        try:
            return function(*args)
        except RuntimeError as error:  # raised by array_record for I/O errors
            reason = str(error).split(";")[0]
            raise OSError(f"{printable(target.name)} was not written: {reason}") from error

    writer = said(array_record_module.ArrayRecordWriter, str(path), shards.WRITER_OPTIONS)
    try:
        yield functools.partial(said, writer.write)
    finally:
        said(writer.close)


def _encode_track(codec, plan, track, file, progress) -> tuple[dict, list[tuple[int, bytes]]]:
    """Write a track's records to a file, one after another.

    Returns:
      `(entry, records)`: the track's entry in the listing, and `(size, first bytes)` of each record.
    """
    form = plan.form
    key = track_key(form.seed, track.key) if form.what == "samples" else None
    latents = codec.stream(track_stream.open_track(track.audio, plan.read_timeout), key=key, mix=form.mix)
    seconds = codec.model.hop_length / codec.sample_rate
    written, done = [], 0
    for arrays in _cut(_kept(latents.posteriors, form.what, plan.statistics), form.record_frames):
        record = latent_records.encode(
            arrays, form.storage_dtype, model=codec.fingerprint, key=track.key, first_frame=done
        )
        file.write(record)
        written.append((len(record), record[:64]))
        frames = next(iter(arrays.values())).shape[1]
        done += frames
        progress(frames * seconds)
    entry = {
        "key": track.key,
        "frames": done,
        "lanes": latents.lanes,
        "sample_rate": track.audio.sample_rate,
        "length": track.audio.frames,
        "channels": latents.channels,
    }
    return entry, written


def _kept(posteriors, what, statistics) -> Iterator[dict[str, np.ndarray]]:
    """Iterate over the calibrated arrays `[n, lanes, latent_dim]` to store, by name."""
    std = np.abs(np.asarray(statistics["latent_std"], np.float32) + np.float32(1e-8))
    for posterior in posteriors:
        if what == "samples":
            yield {"z": posterior.z}
        else:  # without a key, z is the calibrated mean
            yield {"mean": posterior.z, "logvar": posterior.logvar - 2 * np.log(std)}


def _cut(blocks, frames) -> Iterator[dict[str, np.ndarray]]:
    """Regroup `[n, lanes, latent_dim]` to `[lanes, <= frames, latent_dim]`."""
    held = None
    for block in blocks:
        held = block if held is None else {name: np.concatenate([held[name], block[name]]) for name in block}
        while len(next(iter(held.values()))) >= frames:
            yield {name: np.moveaxis(array[:frames], 1, 0) for name, array in held.items()}
            held = {name: array[frames:] for name, array in held.items()}
    if held is not None and len(next(iter(held.values()))):
        yield {name: np.moveaxis(array, 1, 0) for name, array in held.items()}
