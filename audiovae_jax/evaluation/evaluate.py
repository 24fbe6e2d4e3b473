"""Evaluating systems on tracks, and writing tables and a report."""

import concurrent.futures
import csv
import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tqdm

from audiovae_jax.data.audio import audio_file, stream
from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.data.sets.catalog import Track
from audiovae_jax.errors import DataError, UserError, printable
from audiovae_jax.evaluation import distributions, metrics, report
from audiovae_jax.evaluation.presets import Preset
from audiovae_jax.evaluation.summary import summarize
from audiovae_jax.evaluation.systems import System
from audiovae_jax.evaluation.visqol import Visqol
from audiovae_jax.inference import track_stream
from audiovae_jax.storage import atomic

_WORST, _MEDIAN = 2, 1  # number of files with players
_ABOUT = ("file", "system", "seconds", "sample_rate", "channels", "worst_second")


def evaluate(
    systems: Sequence[System],
    tracks: Sequence[Track],
    out: Path,
    *,
    title: str,
    preset: Preset | None = None,
    sample_rate: int | None = None,
    embedding: distributions.Embedding | None = None,
    visqol: Visqol | None = None,
    notes: Sequence[str] = (),
    skipped: Sequence[tuple[str, str]] = (),
    read_timeout: float = 0.0,
) -> dict[str, Any]:
    """Evaluate systems on tracks, and write the results to a folder.

    The results are `files.jsonl`, `files.csv`, `summary.json` and `report.html`. Each system writes its reconstruction
    of a track to a temporary file, which is removed after measuring. So memory does not grow with the length of tracks.

    Args:
      systems: with distinct names. The others are compared with the first.
      tracks: to reconstruct.
      out: the output folder.
      title: of the page.
      preset: a published table. It adds its distances, sets the sample rate, and is shown in the page.
      sample_rate: of measuring, in Hz; None for the preset's, or each track's own.
      embedding: see `distributions.load`. Adds `fad` and `kad` over all windows of all tracks to the summary.
      visqol: adds the ViSQOL score.
      notes: additional notes for the page.
      skipped: `(name, reason)` of files skipped earlier, for the page.
      read_timeout: seconds until a read of a track times out; 0 for no timeout.

    Returns:
      The content of `summary.json`.

    Raises:
      DataError: no file could be evaluated, or the folder cannot be written.
    """
    sample_rate = sample_rate or (None if preset is None else preset.sample_rate)
    distances = metrics.DISTANCES if preset is None else preset.distances
    rows, skipped, latents = [], list(skipped), {system.name: [] for system in systems}
    embedded = {name: [] for name in ("original", *latents)} if embedding is not None else {}
    workers = min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with (
            concurrent.futures.ThreadPoolExecutor(workers) as pool,
            tempfile.TemporaryDirectory(prefix=".evaluation.", dir=out) as folder,
            open(out / "files.jsonl", "w", encoding="utf-8") as lines,
            tqdm.tqdm(total=len(tracks) * len(systems), unit="file", dynamic_ncols=True) as bar,
        ):
            evaluator = _Evaluator(
                Path(folder), pool, distances, sample_rate, visqol, embedding, embedded, read_timeout
            )
            for i, track in enumerate(tracks):
                for j, system in enumerate(systems):
                    done = i * len(systems) + j
                    bar.set_postfix_str(f"{system.name}: {printable(track.key)}", refresh=False)
                    try:
                        row, channels = evaluator.measure(system, track, _progress(bar, done))
                    except UserError as error:
                        reason = f"{system.name}: {error}"
                        skipped.append((printable(track.key), reason))
                        bar.write(f"skipped {printable(track.key)}: {reason}")
                    else:
                        rows.append(row)
                        if channels is not None:
                            latents[system.name].append((row["seconds"], channels))
                        lines.write(json.dumps(_finite(row)) + "\n")
                        lines.flush()
                    bar.n = done + 1
                    bar.refresh()
            if not rows:
                reasons = "\n".join(f"  {name}: {reason}" for name, reason in skipped[:10])
                raise DataError(f"no file could be evaluated:\n{reasons}")
            listening = evaluator.listen(systems, tracks, rows)
        names = [system.name for system in systems]
        table = summarize(rows, names)
        for name, sets in embedded.items():
            if name != "original" and sets and sum(map(len, sets)) > 1:
                table[name] |= _embedding_distances(embedded["original"], sets)
        descriptions = {system.name: system.description for system in systems}
        result = {
            "title": title,
            "sample_rate": sample_rate,
            "files": len({row["file"] for row in rows}),
            "hours": sum(row["seconds"] for row in rows if row["system"] == rows[0]["system"]) / 3600,
            "systems": {
                name: {
                    "description": descriptions[name],
                    "columns": table[name],
                    "latent_channels": _latent_channels(latents[name]),
                }
                for name in names
            },
            "definitions": {name: column.definition for name, column in metrics.COLUMNS.items()},
            "skipped": [list(entry) for entry in skipped],
            "notes": list(notes),
        }
        with atomic.replacing(out / "summary.json") as temporary:
            temporary.write_text(json.dumps(_finite(result), indent=2) + "\n", encoding="utf-8")
        _write_csv(out / "files.csv", rows)
        report.write(
            out / "report.html", title=title, summary=table, descriptions=descriptions, rows=rows, skipped=skipped,
            notes=notes, listening=listening, preset=preset,
        )  # fmt: skip
    except OSError as error:
        raise DataError(f"{printable(out)} cannot be written: {error.strerror or error}") from error
    return result


class _Evaluator:
    def __init__(self, folder, pool, distances, sample_rate, visqol, embedding, embedded, read_timeout):
        self._made, self._pool, self._distances, self._rate = folder / "made.wav", pool, distances, sample_rate
        self._visqol, self._embedding, self._embedded = visqol, embedding, embedded
        self._read_timeout = read_timeout
        self._original_of = None

    def measure(self, system, track, progress) -> tuple[dict[str, Any], dict | None]:
        """Return a row of the table, and the statistics of latent channels if any."""
        if not hasattr(track.audio, "read"):
            raise DataError(f"{track.key} is generated audio, which cannot be evaluated; give files")
        source = track_stream.open_track(track.audio, self._read_timeout)
        made = system.reconstruct(source, self._made, lambda share: progress(share / 2))
        reference, estimate = self._pair(source)
        columns, worst = metrics.measure(
            reference, estimate, distances=self._distances, pool=self._pool,
            progress=lambda share: progress(0.5 + share / 2),
        )  # fmt: skip
        if self._visqol is not None:
            columns["visqol"] = self._visqol.score(reference, estimate)
        if self._embedding is not None:
            if self._original_of != track.key:
                self._embedded["original"].append(distributions.embed(self._embedding, reference))
                self._original_of = track.key
            self._embedded[system.name].append(distributions.embed(self._embedding, estimate))
        self._made.unlink()
        seconds = source.length / source.sample_rate
        return {
            "file": printable(track.key),
            "system": system.name,
            "seconds": seconds,
            "sample_rate": reference.sample_rate,
            "channels": reference.channels,
            "worst_second": worst,
            **columns,
            **made.columns,
            "realtime_factor": made.seconds / seconds,
        }, made.latents

    def listen(self, systems, tracks, rows) -> list[report.Listening]:
        """Reconstruct the worst and the median files again, for listening.

        Files are ranked by the SI-SDR of the first system that has rows.
        """
        first = rows[0]["system"]
        ranked = [row for row in rows if row["system"] == first and row.get("si_sdr_db") is not None]
        ranked.sort(key=lambda row: row["si_sdr_db"])
        chosen = [(f"Worst {i + 1}", row) for i, row in enumerate(ranked[:_WORST])]
        chosen += [("Median", row) for row in ranked[len(ranked) // 2 :][:_MEDIAN] if row not in ranked[:_WORST]]
        by_key = {printable(track.key): track for track in tracks}
        judged = {(row["file"], row["system"]) for row in rows}
        return [
            self._clip(title, row, by_key[row["file"]], [s for s in systems if (row["file"], s.name) in judged], chosen)
            for title, row in chosen
        ]

    def _clip(self, title, row, track, systems, chosen):
        source = track_stream.open_track(track.audio, self._read_timeout)
        channels = min(2, row["channels"])
        seconds = report.clip_seconds(len(chosen), len(systems), source.sample_rate, channels)
        start = max(0.0, min(row["worst_second"] + 0.5 - seconds / 2, row["seconds"] - seconds))
        first, count = round(start * source.sample_rate), round(seconds * source.sample_rate)
        reconstructions = {}
        for system in systems:
            try:
                system.reconstruct(source, self._made, lambda share: None)
                _, estimate = self._pair(source, at_own_rate=True)
                speakers = source.speakers if estimate.channels == source.channels else None
                estimate = audio_file.adapt_channels(_stretch(estimate, first, count), channels, speakers)
                reconstructions[system.name] = estimate
            except UserError:  # the first reconstruction succeeded, so the table has its metrics
                continue
        original = _stretch(source, first, count)
        original = audio_file.adapt_channels(original, channels, source.speakers)
        self._made.unlink(missing_ok=True)
        return report.Listening(
            title, row["file"], row, first / source.sample_rate, source.sample_rate, original, reconstructions
        )

    def _pair(self, source, at_own_rate=False) -> tuple[AudioStream, AudioStream]:
        """Return `(reference, estimate)` with the estimate's channels.

        Both are at the sample rate of measuring, or at their own rates if `at_own_rate`.
        """
        estimate = stream.open_file(self._made)
        reference = source.adapted(estimate.channels)
        if self._rate is None or at_own_rate:
            return reference, estimate
        return reference.resampled(self._rate), estimate.resampled(self._rate)


def _embedding_distances(originals, estimates):
    reference, estimate = np.concatenate(originals), np.concatenate(estimates)
    found = {"fad": distributions.frechet(reference, estimate), "kad": distributions.kernel(reference, estimate)}
    return {
        name: {"files": len(estimates), "mean": value, "median": None, "low": None, "high": None}
        for name, value in found.items()
    }


def _latent_channels(found):
    """Average each channel's statistics over files, weighted by length."""
    if not found:
        return None
    weights = np.array([seconds for seconds, _ in found])
    return {
        name: (weights @ np.array([channels[name] for _, channels in found]) / weights.sum()).tolist()
        for name in found[0][1]
    }


def _stretch(audio, first, count):
    parts, done = [], 0
    for block in audio.blocks():
        if done + len(block) > first:  # an empty slice would keep its whole block in memory
            parts.append(block[max(0, first - done) : first + count - done])
        done += len(block)
        if done >= first + count:
            break
    return np.concatenate(parts)


def _progress(bar, done) -> Callable[[float], None]:
    def show(share):
        bar.n = round(done + share, 2)
        bar.refresh()

    return show


def _finite(value):
    """Replace numbers that are not finite, which JSON lacks, by None."""
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _write_csv(path, rows):
    known = [*_ABOUT, *(name for name in metrics.COLUMNS if any(row.get(name) is not None for row in rows))]
    with atomic.replacing(path) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, known, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
