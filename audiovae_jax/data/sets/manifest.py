"""Manifests: JSON Lines or CSV files that list audio and how to use it."""

import codecs
import collections
import concurrent.futures
import csv
import dataclasses
import difflib
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from audiovae_jax.data.audio import remote
from audiovae_jax.data.audio.audio_file import Place
from audiovae_jax.data.sets import catalog, probing
from audiovae_jax.data.sets.catalog import Catalog, Excerpt, Track
from audiovae_jax.errors import DataError, RootError, printable

SUFFIXES = (".jsonl", ".csv")
_FIELDS = ("path", "start", "duration", "weight", "split")
_TRAIN, _VALIDATION, _HELD_OUT = "train", "validation", "test"
_MAX_VALUE = 1e9  # maximum seconds or weight
_SPLITS = {"train": _TRAIN, "valid": _VALIDATION, "val": _VALIDATION, "validation": _VALIDATION, "test": _HELD_OUT}


def scan(root: str, options: probing.Options, validation_fraction: float) -> Catalog:
    """Scan the audio that a manifest lists.

    A line of JSON Lines is an object. A CSV starts with a line of column names. The fields are

    - `path`: relative to the manifest's folder, absolute, or a URL. It is required.
    - `start`, `duration`: in seconds, to select a part of the file.
    - `weight`: how often a second of it is drawn, 1 by default.
    - `split`: train, validation or test. If no line has a split, entries are split by a hash of their path.

    Raises:
      DataError: a line is invalid, or no entry can be used. The message names the line.
    """
    entries = list(_entries(root, options))
    if not entries:
        raise RootError(root, "lists no audio")
    base = root.rpartition("/")[0] if remote.is_url(root) else Path(remote.local_path(root)).parent
    paths = list(dict.fromkeys(entry["path"] for entry in entries))
    places = _places(base, paths, options)
    probed = {path: place for path, place in places.items() if isinstance(place, str)}
    there = [path for path in paths if path not in probed]
    probed |= dict(zip(there, probing.probe(root, [places[path] for path in there], options), strict=True))
    sides, skipped = {_TRAIN: [], _VALIDATION: [], _HELD_OUT: []}, []
    has_split = any(entry["split"] for entry in entries)
    times = collections.Counter()
    for entry in entries:
        file = probed[entry["path"]]
        if isinstance(file, str):
            skipped.append((_name(entry, places), file))
            continue
        track = _track(entry, file)
        if isinstance(track, str):
            skipped.append((_name(entry, places), track))
        else:
            times[track.key] += 1
            if times[track.key] > 1:  # repeated entries get distinct keys
                track = dataclasses.replace(track, key=f"{track.key}#{times[track.key]}")
            sides[_SPLITS[entry["split"]] if entry["split"] else _TRAIN].append(track)
    train, validation = sides[_TRAIN], sides[_VALIDATION]
    catalog.require_tracks(train + validation, skipped, root)
    if not has_split:
        train, validation = catalog.by_hash(train, validation_fraction)
    if not train or not validation:
        missing = _VALIDATION if train else _TRAIN
        raise RootError(root, f"no usable line has split {missing!r}; leave all splits out or add it")
    return catalog.of_sides(train, validation, dict.fromkeys(skipped), f"entries of {root}")


def _entries(root, options) -> Iterator[dict]:
    text = probing.read(root, options).removeprefix(codecs.BOM_UTF8).decode(errors="surrogateescape")
    rows = _csv_lines(root, text) if root.lower().endswith(".csv") else _json_lines(root, text)
    for i, row in enumerate(rows, start=1):
        yield _checked(f"{root}: entry {i}", row)


def _csv_lines(root, text):
    heading = text.partition("\n")[0]
    rows = csv.reader(io.StringIO(text), delimiter=";" if ";" in heading and "," not in heading else ",")
    try:
        fields = [field.strip().lower() for field in next(rows, [])]
        if "path" not in fields:
            raise DataError(f"{root}: its first line has no column path, only {', '.join(fields) or 'nothing'}")
        for row in rows:
            if row:
                yield dict(zip(fields, row, strict=False))
    except csv.Error as error:
        raise DataError(f"{root}: line {rows.line_num} is not CSV ({error})") from error


def _json_lines(root, text):
    for i, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise DataError(f"{root}: line {i} is not JSON ({error})") from error


def _checked(where, row):
    if not isinstance(row, dict) or not isinstance(row.get("path"), str) or not row["path"]:
        raise DataError(f"{where} has no path; the fields are {', '.join(_FIELDS)}")
    if "\0" in row["path"]:
        raise DataError(f"{where}: its path {row['path']!r} is not a path")
    for field in row.keys() - _FIELDS:
        near = difflib.get_close_matches(str(field).strip().lower(), _FIELDS, n=1, cutoff=0.8)
        if near and near[0] not in row:
            raise DataError(f"{where} has {field!r}; did you mean {near[0]!r}?")
    entry = {"path": row["path"], "split": row.get("split") or None}
    if entry["split"] is not None and (not isinstance(entry["split"], str) or entry["split"] not in _SPLITS):
        raise DataError(f"{where}: split {entry['split']!r} must be one of {', '.join(_SPLITS)}")
    for field, default in (("start", 0.0), ("duration", None), ("weight", 1.0)):
        given = row.get(field)
        try:
            entry[field] = default if given in (None, "") else float(given)
        except (TypeError, ValueError, OverflowError):
            raise DataError(f"{where}: {field} {str(given)[:20]!r} is not a number") from None
        value = entry[field]
        if value is not None and (not value <= _MAX_VALUE or value < 0 or (field != "start" and value == 0)):
            raise DataError(f"{where}: {field} {given!r} must be {'0 or more' if field == 'start' else 'above 0'}")
    return entry


def _places(base, paths, options) -> dict[str, Place | str]:
    """Return the place of each path's file, or the reason why it cannot be opened."""
    urls, places = {}, {}
    for path in paths:
        if remote.is_url(path):
            urls[path] = path
        elif isinstance(base, str) and not os.path.isabs(remote.local_path(path)):
            urls[path] = f"{base}/{path}"
        else:
            places[path] = Path(os.path.join(base, remote.local_path(path)))

    def opened(url):
        try:
            return remote.open_url(url, options.access)
        except remote.UnreachableError:
            raise
        except remote.RemoteError as error:
            return error.detail

    with concurrent.futures.ThreadPoolExecutor(options.num_threads) as pool:
        return places | dict(zip(urls, pool.map(opened, urls.values()), strict=True))


def _name(entry, places):
    place = places[entry["path"]]
    return printable(entry["path"] if isinstance(place, str) else place)


def _track(entry, file) -> Track | str:
    """Return an entry's track, or the reason why it has none."""
    start = round(entry["start"] * file.sample_rate)
    frames = file.frames - start
    if entry["duration"] is not None:
        frames = min(frames, round(entry["duration"] * file.sample_rate))
    if frames <= 0:
        return f"its {file.seconds:.3f} s end before start={entry['start']:g}"
    whole = frames == file.frames
    key = entry["path"] if whole else f"{entry['path']}@{start}+{frames}"
    return Track(key, file if whole else Excerpt(file, start, frames), entry["weight"])
