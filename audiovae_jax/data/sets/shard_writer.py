"""Writing a data set as ArrayRecord shards, in parallel and resumable."""

import concurrent.futures
import json
from collections.abc import Callable
from pathlib import Path

import tqdm

from audiovae_jax.data.sets import sharding, shards
from audiovae_jax.data.sets.catalog import Catalog
from audiovae_jax.errors import DataError, printable
from audiovae_jax.storage import atomic


def write(
    catalog: Catalog,
    folder: Path,
    *,
    record_seconds: float,
    shard_bytes: int,
    num_threads: int,
    say: Callable[[str], None],
) -> int:
    """Write a data set's tracks in order as shards to `folder`.

    A shard's content is a function of its tracks. Complete shards of the same tracks are kept.

    Args:
      catalog: the data set.
      folder: created if missing.
      record_seconds: maximum length of a record.
      shard_bytes: approximate size of a shard, counted in 16-bit samples.
      num_threads: number of shards written at once.
      say: called with one line of progress at a time.

    Returns:
      The number of tracks in the shards.

    Raises:
      DataError: no track could be read, or the folder cannot be written to or contains shards of another data set.
    """
    tracks, sides = sharding.by_key(catalog)
    groups = sharding.groups(list(tracks.values()), _pcm_bytes, shard_bytes)
    names = [f"shard-{i:05d}" for i in range(len(groups))]
    settings = {"fingerprint": catalog.fingerprint, "record_seconds": record_seconds, "shard_bytes": shard_bytes}
    sharding.claim(folder, settings)
    try:
        with concurrent.futures.ThreadPoolExecutor(num_threads) as pool:
            jobs = [
                pool.submit(_write_shard, folder / name, group, record_seconds)
                for name, group in zip(names, groups, strict=True)
            ]
            try:
                for job in tqdm.tqdm(concurrent.futures.as_completed(jobs), total=len(jobs), unit="shard", delay=2.0):
                    job.result()
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        results = [job.result() for job in jobs]
        entries, skipped = [], list(catalog.skipped)
        for i, (written, unreadable) in enumerate(results):
            skipped += unreadable
            for entry in written:
                track = tracks[entry["key"]]
                entries.append({**entry, "shard": i, "weight": track.weight, "sides": sides[track.key]})
        if not entries:
            raise DataError("no track could be read: " + "; ".join(f"{name}: {why}" for name, why in skipped[:5]))
        for name, reason in skipped:
            say(f"left out {name}: {reason}")
        order = {key: i for i, key in enumerate(tracks)}
        content = {
            "format": shards.FORMAT,
            "version": shards.VERSION,
            **settings,
            "shards": [[name, (folder / f"{name}{shards.SUFFIX}").stat().st_size] for name in names],
            "tracks": sorted(entries, key=lambda entry: order[entry["key"]]),
        }
        with atomic.replacing(folder / shards.INDEX) as temporary:
            temporary.write_text(json.dumps(content))
        sharding.finish(folder)
    except OSError as error:
        raise DataError(f"{printable(folder)}: {error.strerror or error}") from error
    return len(entries)


def _pcm_bytes(track):
    return 2 * track.audio.frames * track.audio.channels


def _write_shard(path, tracks, record_seconds):
    """Write a shard, and return its tracks' entries and the unreadable tracks.

    Returns:
      `(entries, skipped)`, where `skipped` has `(key, reason)` of each unreadable track.
    """
    listing = path.with_name(path.name + ".json")
    target = path.with_name(path.name + shards.SUFFIX)
    if listing.exists() and target.exists():
        try:
            content = json.loads(listing.read_text())
            if content["bytes"] == target.stat().st_size and content["of"] == [track.key for track in tracks]:
                return content["tracks"], [tuple(entry) for entry in content["skipped"]]
        except (ValueError, KeyError, TypeError):
            pass
    from array_record.python import array_record_module

    entries, skipped, sizes = [], [], []
    with atomic.replacing(target) as temporary:
        writer = array_record_module.ArrayRecordWriter(str(temporary), shards.WRITER_OPTIONS)
        try:
            for track in tracks:
                audio = track.audio
                frames = max(1, round(record_seconds * audio.sample_rate))
                try:
                    records = [
                        shards.encode_record(audio.read(start, min(frames, audio.frames - start)), audio.sample_rate)
                        for start in range(0, audio.frames, frames)
                    ]
                except DataError as error:
                    skipped.append((printable(track.key), str(error)))
                    continue
                entries.append(
                    {
                        "key": track.key,
                        "first_record": len(sizes),
                        "record_frames": frames,
                        "frames": audio.frames,
                        "sample_rate": audio.sample_rate,
                        "channels": audio.channels,
                    }
                    | ({"speakers": audio.speakers} if audio.speakers else {})
                )
                for record in records:
                    writer.write(record)
                    sizes.append((len(record), record[:64]))
        finally:
            writer.close()
        positions = sharding.positions(temporary, sizes)
    content = {
        "bytes": target.stat().st_size,
        "of": [track.key for track in tracks],
        "tracks": entries,
        "skipped": skipped,
        "records": positions,
    }
    with atomic.replacing(listing) as temporary:
        temporary.write_text(json.dumps(content))
    return entries, skipped
