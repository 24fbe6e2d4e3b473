"""Surveys of a data set as training with a config would read it."""

import concurrent.futures
import dataclasses
import math
import re
import time
from collections.abc import Iterator, Sequence

import numpy as np
import tqdm

from audiovae_jax.data.audio import levels
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.feeding.pipeline import Data
from audiovae_jax.data.sets import bandwidth, catalog
from audiovae_jax.data.sets.catalog import Track
from audiovae_jax.data.survey import duplicates, measures
from audiovae_jax.data.survey.duplicates import Duplicates
from audiovae_jax.data.survey.measures import Measures
from audiovae_jax.errors import DataError

MUCH_SILENCE = 0.2  # fraction of a track's or the data set's time
REPORTED_FRACTION = 0.05  # fraction of the measured tracks above which a doubt is reported
MANY_CLIPS = 10.0  # per minute
_COMPARED = 20  # tracks that are compared with all others, for each one that is measured
_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Amount:
    """The number and total length of some tracks."""

    tracks: int
    hours: float


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Files that cannot be used for one reason: their number, and the first names."""

    reason: str
    files: int
    examples: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Reading:
    """The speed of reading training crops, without training.

    Attributes:
      crops_per_second: averaged over `seconds`.
      seconds: duration of the measurement.
      threads: number of reading threads.
      batch_size: of the config.
    """

    crops_per_second: float
    seconds: float
    threads: int
    batch_size: int


@dataclasses.dataclass(frozen=True)
class Survey:
    """Statistics of a data set, and the problems that training would have with it.

    Attributes:
      root: as given.
      origin: description of the data set.
      fingerprint: of its tracks.
      sample_rate, channels, crop_seconds: of the config's crops.
      train, validation, total: amounts of each split, and of all tracks, each counted once.
      sample_rates, channel_counts: amounts by rate in Hz, and by number of channels.
      lengths: of the tracks, in seconds.
      files: number of files, usable or not.
      skipped: the files that cannot be used.
      measured: measures of some tracks, spread evenly over the data set.
      unreadable: `(name, reason)` of tracks that passed probing but could not be read.
      reading: speed of reading; None if not measured.
      notices: see `catalog.notices`.
      refusal: the reason why training would fail, or None.
      doubts: warnings to check before a run.
      ignored: what was left out without counting as unusable, such as hidden files.
      duplicates: recordings that are there more than once, those in both splits first.
      compared: number of tracks that were compared for duplicates.
    """

    root: str
    origin: str
    fingerprint: str
    sample_rate: int
    channels: int
    crop_seconds: float
    train: Amount
    validation: Amount
    total: Amount
    sample_rates: dict[int, Amount]
    channel_counts: dict[int, Amount]
    lengths: tuple[float, ...]
    files: int
    skipped: tuple[Skipped, ...]
    measured: tuple[Measures, ...]
    unreadable: tuple[tuple[str, str], ...]
    reading: Reading | None
    refusal: str | None
    notices: tuple[str, ...] = ()
    doubts: tuple[str, ...] = ()
    ignored: tuple[Skipped, ...] = ()
    duplicates: tuple[Duplicates, ...] = ()
    compared: int = 0


def make(config, data: Data, *, root: str, batch_size: int, limit: int, seconds: float) -> Survey:
    """Survey a data set.

    Args:
      config: the section `config.data`.
      data: as opened for training.
      root: the data set's name, for messages.
      batch_size: of the run.
      limit: maximum number of tracks to measure.
      seconds: duration of the measurement of reading speed; 0 to skip it.

    Raises:
      DataError: the data set has no files.
    """
    if data.catalog is None:
        raise DataError("there are no files to survey: the config's data is the built-in generator")
    reading = reading_failed = None
    try:
        # Measured first, since measuring tracks puts files into the operating system's cache.
        reading = _read(config, data, batch_size, seconds) if seconds else None
    except DataError as error:
        reading_failed = str(error)
    train, validation = _of_files(data.catalog.train), _of_files(data.catalog.validation)
    tracks = list({track.key: track for track in (*train, *validation)}.values())
    measured, unreadable = _measure(
        spread(tracks, limit), config.num_threads, pipeline.read_timeout(config, data.catalog)
    )
    found, compared = duplicates.find(data.catalog, pipeline.probing_options(config), _COMPARED * limit)
    survey = Survey(
        root=root,
        origin=data.catalog.origin,
        fingerprint=data.fingerprint,
        sample_rate=config.sample_rate,
        channels=config.channels,
        crop_seconds=config.crop_length / config.sample_rate,
        train=_amount(train),
        validation=_amount(validation),
        total=_amount(tracks),
        sample_rates=_by(tracks, lambda track: track.audio.sample_rate),
        channel_counts=_by(tracks, lambda track: track.audio.channels),
        lengths=tuple(track.seconds for track in tracks),
        files=data.health.total,
        skipped=grouped(data.catalog.skipped),
        measured=tuple(measured),
        unreadable=tuple(unreadable),
        reading=reading,
        refusal=reading_failed or _refusal(data.health, config.max_bad_share, unreadable),
        notices=tuple(catalog.notices(tracks)),
        ignored=grouped(data.catalog.ignored),
        duplicates=found,
        compared=compared,
    )
    return dataclasses.replace(survey, doubts=tuple(_doubts(survey)))


def spread(tracks: Sequence[Track], limit: int) -> list[Track]:
    """Select at most `limit` tracks, spread evenly over the list."""
    if len(tracks) <= limit:
        return list(tracks)
    return [tracks[i * len(tracks) // limit] for i in range(limit)]


def grouped(skipped: Sequence[tuple[str, str]]) -> tuple[Skipped, ...]:
    """Group `(name, reason)` pairs by reason, the most frequent first.

    Reasons that differ only in numbers are merged, with N instead of these numbers.
    """
    groups: dict[tuple[str, ...], list[tuple[str, list[str]]]] = {}
    for name, reason in skipped:
        parts = re.split(r"(\d+(?:\.\d+)?)", reason)
        groups.setdefault(tuple(parts[::2]), []).append((name, parts))
    found = []
    for group in groups.values():
        columns = zip(*(parts for _, parts in group), strict=True)
        reason = "".join(column[0] if len(set(column)) == 1 else "N" for column in columns)
        found.append(Skipped(reason, len(group), tuple(name for name, _ in group[:_EXAMPLES])))
    return tuple(sorted(found, key=lambda entry: -entry.files))


def full_band_hz(survey: Survey) -> float:
    """Return the minimum bandwidth in Hz of a full-band track."""
    return bandwidth.FULL_BAND * survey.sample_rate / 2


def silence(survey: Survey) -> float:
    """Estimate the fraction of silence in the data set from the measured tracks."""
    total = sum(track.seconds for track in survey.measured)
    return sum(track.silence * track.seconds for track in survey.measured) / total if total else 0.0


def _refusal(health, max_share, unreadable):
    try:
        health.require_few()
    except DataError as error:
        return str(error)
    later = {name: reason for name, reason in unreadable if not health.is_bad(name)}
    if health.bad_files + len(later) <= max_share * health.total:
        return None
    reasons = "\n".join(f"  {_with_name(*entry)}" for entry in list(later.items())[:_EXAMPLES])
    return (
        f"{health.bad_files + len(later)} of {health.total} files cannot be used, more than "
        f"data.max_bad_share={max_share:g} allows; {len(later)} of them passed the first checks, and would end the run "
        f"when it reads their damaged part:\n{reasons}"
    )


def _doubts(survey) -> Iterator[str]:
    """Iterate over warnings.

    Problems that are known for all tracks are reported from the first track on. Those of measured tracks are reported
    if they concern more than `REPORTED_FRACTION` of them, except for dual mono.
    """
    rate, channels, crop, band = survey.sample_rate, survey.channels, survey.crop_seconds, full_band_hz(survey)
    measured, share = survey.measured, silence(survey)

    def some(count, of, what, least=0.0):
        if count > least * of:
            yield f"{count} of {of} tracks ({count / of:.0%}): {what}"

    def of_all(counts, belongs, what):
        yield from some(sum(n.tracks for key, n in counts.items() if belongs(key)), survey.total.tracks, what)

    def of_measured(belongs, what, least=REPORTED_FRACTION):
        yield from some(sum(map(belongs, measured)), len(measured), what, least)

    yield from of_all(
        survey.sample_rates,
        lambda hz: hz < rate,
        f"less than {rate} Hz; resampled, so the highest frequencies are empty",
    )
    yield from of_all(
        survey.sample_rates, lambda hz: hz > rate, f"more than {rate} Hz; resampled crop by crop, which takes time"
    )
    if channels > 1:
        yield from of_all(
            survey.channel_counts, lambda n: n == 1, f"mono in a run of {channels} channels; copied to each"
        )
        yield from of_measured(lambda track: track.is_dual_mono, "identical channels, so the audio is mono", 0.0)
    short = sum(length < crop for length in survey.lengths)
    yield from some(short, survey.total.tracks, f"shorter than a crop of {crop:.2f} s, and padded or repeated")
    if share > MUCH_SILENCE:
        yield f"{share:.0%} of the time is silence; with config.data.min_loudness_db such crops are drawn again"
    yield from of_measured(
        lambda track: track.silence > MUCH_SILENCE, f"silent for more than {MUCH_SILENCE:.0%} of their time"
    )
    yield from of_measured(
        lambda track: 0 < track.band_hz < band,
        f"nothing above {band / 1000:.1f} kHz; config.data.full_band_share sets the share of full-band crops",
    )
    yield from of_measured(
        lambda track: track.clips_per_minute > MANY_CLIPS, f"clipped more than {MANY_CLIPS:g} times a minute"
    )
    yield from survey.notices
    yield from of_measured(
        lambda track: track.peak > levels.LOUD,
        f"a peak above {20 * math.log10(levels.LOUD):+.0f} dBFS in the measured parts; scale them to -1..1",
        0.0,
    )
    leaks = [group for group in survey.duplicates if group.is_leak]
    if leaks:
        count, first = sum(len(group.validation) for group in leaks), leaks[0]
        yield (
            f"{count} of {survey.validation.tracks} validation tracks are trained on too, as copies or in another "
            f"encoding, so that validation is too good; the first: {first.validation[0]} is {first.train[0]}"
        )
    if survey.unreadable:
        first = _with_name(*survey.unreadable[0])
        yield f"{len(survey.unreadable)} of the tracks passed the first checks, but are unreadable; the first: {first}"


def _with_name(name, reason):
    return reason if name in reason else f"{name}: {reason}"


def _measure(tracks, num_threads, read_timeout):
    def measure(track):
        try:
            return measures.measure(track, read_timeout)
        except DataError as error:
            return track.audio.name, str(error)

    pool = concurrent.futures.ThreadPoolExecutor(num_threads)
    try:
        results = list(
            tqdm.tqdm(
                pool.map(measure, tracks), total=len(tracks), desc="listening", unit="track", delay=2.0, leave=False
            )
        )
    finally:
        pool.shutdown(cancel_futures=True)
    measured = [result for result in results if isinstance(result, Measures)]
    return measured, [result for result in results if not isinstance(result, Measures)]


def _read(config, data, batch_size, seconds):
    batches = pipeline.batches(
        data.train,
        batch_size=batch_size,
        start_step=0,
        num_steps=1 << 31,
        num_threads=config.num_threads,
        prefetch_batches=config.prefetch_batches,
    )
    next(batches)  # wait until the threads have started
    start, crops = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or not crops:
        crops += len(next(batches))
    return Reading(crops / passed, passed, min(config.num_threads, config.prefetch_batches), batch_size)


def _of_files(tracks):
    return [track for track in tracks if hasattr(track.audio, "read")]  # the built-in generator has none


def _amount(tracks):
    return Amount(len(tracks), sum(track.seconds for track in tracks) / 3600)


def _by(tracks, value):
    groups: dict[int, list[Track]] = {}
    for track in tracks:
        groups.setdefault(value(track), []).append(track)
    return {key: _amount(groups[key]) for key in sorted(groups)}


def percentiles(values: Sequence[float]) -> tuple[float, ...]:
    """Return the minimum, 5 %, median, 95 % and maximum of some numbers."""
    return tuple(float(value) for value in np.percentile(values, (0, 5, 50, 95, 100)))
