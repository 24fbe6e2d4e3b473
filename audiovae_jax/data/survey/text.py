"""A survey as text: one line per subject, with warnings at the end."""

from collections.abc import Iterator

import numpy as np

from audiovae_jax.data.survey import measures, survey
from audiovae_jax.data.survey.survey import Amount, Survey

_BAR = 30  # characters
_BANDS = 8
_GROUPS, _NAMES = 10, 3  # maximum numbers of groups of duplicates, and of names in each split


def lines(found: Survey) -> Iterator[str]:
    """Yield the report line by line."""
    for name, value in table(found):
        first, *others = value.split("\n")
        yield f"{name:<13} {first}"
        yield from (f"{'':<13} {line}" for line in others)
    yield from (f"warning: {doubt}" for doubt in found.doubts)


def table(found: Survey, *, bars: bool = True) -> Iterator[tuple[str, str]]:
    """Yield `(subject, text)` for each subject. The text may have several lines.

    Args:
      found: the survey.
      bars: whether to add a text histogram, which needs a monospaced font.
    """
    yield "data set", f"{found.origin}: {_amount(found.total)} (fingerprint {found.fingerprint})"
    yield "split", f"training: {_amount(found.train)}\nvalidation: {_amount(found.validation)}"
    yield "sample rates", _amounts(found.sample_rates, "{} Hz", found.sample_rate)
    yield "channels", _amounts(found.channel_counts, "{}", found.channels)
    if found.lengths:
        yield "lengths", _spread(found.lengths, "s", 2)
    yield "skipped", _skipped(found)
    if found.ignored:
        yield "left out", "\n".join(_entries(found.ignored))
    if found.compared > 1:
        yield "duplicates", _duplicates(found)
    yield "listened to", listened_to(found)
    if found.measured:
        yield "loudness", _loudness(found.measured)
        yield "silence", _silence(found)
        yield "clips", _clips(found.measured)
        if bars:
            yield "spectra end", _histogram(bands(found))
    if found.reading:
        yield "reading", _reading(found)


def counted(tracks: int) -> str:
    """Return a count with its noun: `1 track`, `2 tracks`."""
    return f"{tracks} track{'' if tracks == 1 else 's'}"


def duration(hours: float) -> str:
    """Format a duration: `1.25 h`, or `4.5 min` if it is short."""
    return f"{hours:.2f} h" if hours >= 0.1 else f"{60 * hours:.1f} min"


def listened_to(found: Survey) -> str:
    """Describe which tracks were measured."""
    measured = len(found.measured)
    which = f"all {counted(measured)}"
    if measured + len(found.unreadable) < found.total.tracks:
        which = f"{measured} of {counted(found.total.tracks)}, spread evenly over all (--limit)"
    return (
        f"{which}; of tracks longer than {measures.WHOLE_SECONDS:.0f} s, {measures.STRETCHES} segments of "
        f"{measures.STRETCH_SECONDS:.0f} s"
    )


def bands(found: Survey) -> list[tuple[float, float, int]]:
    """Return a histogram of bandwidths as `(from Hz, to Hz, tracks)`.

    Silent tracks are excluded.
    """
    ends = [track.band_hz for track in found.measured if track.band_hz]
    counts, edges = np.histogram(ends, _BANDS, (0, max([found.sample_rate / 2, *ends])))
    return [(float(low), float(high), int(n)) for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)]


def _loudness(measured):
    levels = [track.loudness_lufs for track in measured if track.loudness_lufs is not None]
    if not levels:
        return "none: all tracks are silent or too short"
    return f"{_spread(levels, 'LUFS', 1)} (BS.1770, integrated)"


def _silence(found):
    much = sum(track.silence > survey.MUCH_SILENCE for track in found.measured)
    return (
        f"{survey.silence(found):.1%} of the time (RMS of {1000 * measures.SILENCE_BLOCK:.0f} ms below "
        f"{measures.SILENCE_DB:.0f} dBFS); more than {survey.MUCH_SILENCE:.0%} in {counted(much)}"
    )


def _clips(measured):
    many = sum(track.clips_per_minute > survey.MANY_CLIPS for track in measured)
    return (
        f"more than {survey.MANY_CLIPS:g} a minute in {counted(many)} ({measures.CLIP_RUN} samples or more in a row at "
        "full scale)"
    )


def _histogram(counts):
    most = max(1, *(count for _, _, count in counts))
    return "\n".join(
        f"{low / 1000:4.1f} - {high / 1000:4.1f} kHz  {count:5d} {'#' * -(-_BAR * count // most)}".rstrip()
        for low, high, count in counts
    )


def _reading(found):
    reading = found.reading
    return (
        f"{reading.crops_per_second:.1f} crops of {found.crop_seconds:.2f} s a second with "
        f"{reading.threads} thread{'' if reading.threads == 1 else 's'}, "
        f"{reading.crops_per_second * found.crop_seconds:.0f} times real time (measured for {reading.seconds:.1f} s)\n"
        f"{reading.batch_size / reading.crops_per_second:.3f} s for a batch of {reading.batch_size}: "
        "a faster step waits for data"
    )


def _skipped(found):
    if not found.skipped:
        return f"none of {found.files} files"
    total = sum(entry.files for entry in found.skipped)
    return "\n".join([f"{total} of {found.files} files", *_entries(found.skipped)])


def _entries(skipped):
    for entry in skipped:
        more = ", ..." if entry.files > len(entry.examples) else ""
        yield f"{entry.files:5d}  {entry.reason}: {', '.join(entry.examples)}{more}"


def _duplicates(found):
    groups = found.duplicates
    which = "all tracks" if found.compared == found.total.tracks else f"{counted(found.compared)} (--limit)"
    if not groups:
        return f"none among {which}"
    leaks = sum(group.is_leak for group in groups)
    lines = [f"recordings found more than once among {which}: {len(groups)}, in both splits: {leaks}"]
    for group in groups[:_GROUPS]:
        kind = "copies" if group.is_exact else "encodings"
        lines.append("; ".join([kind, *_side("train", group.train), *_side("validation", group.validation)]))
    return "\n".join([*lines, "..."] if len(groups) > _GROUPS else lines)


def _side(side, names):
    if names:
        more = f" and {len(names) - _NAMES} more" if len(names) > _NAMES else ""
        yield f"{side}: {', '.join(names[:_NAMES])}{more}"


def _amounts(by, form, wanted):
    return "\n".join(
        f"{form.format(key)}{'' if key == wanted else f', converted to {wanted}'}: {_amount(amount)}"
        for key, amount in by.items()
    )


def _amount(amount: Amount):
    return f"{counted(amount.tracks)}, {duration(amount.hours)}"


def _spread(values, unit, digits):
    least, low, middle, high, most = (f"{value:.{digits}f}" for value in survey.percentiles(values))
    return f"median {middle} {unit}, 90 % of the tracks {low} to {high}, all {least} to {most}"
