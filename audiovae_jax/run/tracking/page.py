"""One HTML page of runs: warnings, curves, samples and config differences."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from audiovae_jax.config.configuration import flatten
from audiovae_jax.html import drawing, picture
from audiovae_jax.html.document import breakable, document, escaped, table, wav_player
from audiovae_jax.run.tracking import curves, sessions
from audiovae_jax.run.tracking.history import History
from audiovae_jax.storage import atomic

_LOSS = "val/total_loss"
_FIRST = ("val", "train")  # groups shown first, and unfolded
_RISEN = 1.1  # ratio of the last validation loss to the best above which there is a warning
_LATEST = 20  # maximum number of remarks shown per run


def write(runs: list[History], reference: dict[str, Any], path: Path, *, sample_steps: int):
    """Write the page.

    Args:
      runs: the runs to show side by side, in this order.
      reference: the base config to compare the runs' configs with.
      path: the HTML file to write.
      sample_steps: number of steps per run whose samples are shown. They are evenly spaced and include the first and
        the last step.

    Raises:
      OSError: the file cannot be written.
    """
    names = _names([run.workdir for run in runs])
    body = _summary(runs, names) + _warnings(runs, names) + _time(runs, names) + _curves(runs, names)
    body += _samples(runs, names, sample_steps) + _configs(runs, names, reference)
    title = f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs"
    with atomic.replacing(path) as temporary:
        temporary.write_text(document(title, body), encoding="utf-8")


def warnings(run: History) -> list[str]:
    """Return warnings about a run.

    They cover metrics that are not finite, a rising validation loss, and the latest warnings that the run recorded.
    """
    found = []
    for name, (steps, values) in run.scalars.items():
        bad = ~np.isfinite(values)
        if bad.any():
            found.append(f"{name} was not finite {bad.sum()} times, first at step {steps[bad][0]}")
    steps, values = run.scalars.get(_LOSS, (np.zeros(0), np.zeros(0)))
    if len(values) > 1 and np.isfinite(values).any():
        best = int(np.nanargmin(values))
        if values[best] > 0 and values[-1] > _RISEN * values[best]:
            found.append(
                f"{_LOSS} is {values[-1]:.4g} at step {steps[-1]}; it was {values[best]:.4g} at step {steps[best]}"
            )
    said = [f"step {step}: {text}" for step, name, text in run.remarks]
    if len(said) > _LATEST:
        found.append(f"the last {_LATEST} of {len(said)} warnings:")
    return found + said[-_LATEST:]


def _names(workdirs):
    """Return a unique name per run: its folder's name, or its path if ambiguous."""
    names = [workdir.resolve().name for workdir in workdirs]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, workdirs, strict=True)]


def _summary(runs, names):
    rows = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        steps, values = curves.finite(*run.scalars.get(_LOSS, ((), ())))
        best, last = "", ""
        if len(values):
            least = values.argmin()
            best = f"<b>{values[least]:.4f}</b><small>at step {steps[least]:.0f}</small>"
            last = f"{values[-1]:.4f}<small>at step {steps[-1]:.0f}</small>"
        length = run.config.get("num_steps")
        step = f"{run.last_step} of {length}" if length else run.last_step
        rows.append([f"{drawing.key(i)}{escaped(name)}", escaped(step), best, last, escaped(_bad_files(run))])
    return table(rows, ["run", "step", f"best {_LOSS}", f"last {_LOSS}", "bad files"], numbers=True)


def _bad_files(run):
    paths = [path for path in run.workdir.glob("bad_files*.jsonl") if path.is_file()]
    return sum(path.read_bytes().count(b"\n") for path in paths)


def _warnings(runs, names):
    shown = [
        f'<p class="warning">{escaped(name)}: {escaped(warning)}</p>'
        for run, name in zip(runs, names, strict=True)
        for warning in warnings(run)
    ]
    return "<h2>Warnings</h2>" + ("".join(shown) or "<p>none</p>")


def _time(runs, names):
    rows, header = [], ["run", "goodput", "total", *sessions.PARTS, "down"]
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        if run.sessions:
            rows.append(_time_row(f"{drawing.key(i)}{escaped(name)}", sessions.totals(run.sessions), run.sessions))
        if len(run.sessions) > 1:
            newest = sessions.each(run.sessions)[-_LATEST:]
            for session, seconds in zip(run.sessions[-_LATEST:], newest, strict=True):
                steps = f"steps {session['first_step']} to {session['last_step']}"
                rows.append(_time_row(escaped(steps), seconds, []))
    if not rows:
        return ""
    text = (
        "<p>Goodput is the share of useful steps in the time of all sessions. Lost steps were repeated by a later "
        "session or after a rollback. Down is the time between sessions, which does not count.</p>"
    )
    return f"<h2>Where the time went</h2>{text}{table(rows, header, numbers=True)}"


def _time_row(name, seconds, own):
    shown = [sum(seconds.values()), *seconds.values(), sessions.between(own)]
    return [name, f"{sessions.goodput(seconds):.0%}", *(sessions.duration(each) if each else "" for each in shown)]


def _curves(runs, names):
    groups: dict[str, list[str]] = {}
    for metric in sorted({metric for run in runs for metric in run.scalars}):
        groups.setdefault(metric.rpartition("/")[0] or "others", []).append(metric)
    made, constant = ["<h2>Curves over steps</h2><p>The number beside each run is its last value.</p>"], []
    for group in sorted(groups, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)):
        charts = []
        for metric in groups[group]:
            series = {name: run.scalars.get(metric, ((), ())) for run, name in zip(runs, names, strict=True)}
            values = [curves.finite(*points)[1] for points in series.values()]
            if any(len(set(curve)) > 1 for curve in values):
                charts.append(curves.chart(metric, series))
            else:
                numbers = [f"{curve[-1]:.6g}" if len(curve) else "" for curve in values]
                constant.append([breakable(metric), *numbers])
        if charts:
            opened = " open" if group in _FIRST else ""
            made.append(
                f"<details{opened}><summary>{escaped(group)} ({len(charts)})</summary>"
                f'<div class="grid">{"".join(charts)}</div></details>'
            )
    if constant:
        made.append(
            f"<details><summary>Numbers that never changed ({len(constant)})</summary>"
            f"{table(constant, ['', *names], numbers=True)}</details>"
        )
    return "".join(made)


def _samples(runs, names, count):
    steps = {step: None for run in runs for step in _spread(list(run.samples), count)}
    steps = sorted(steps)
    numbers = sorted(
        {
            int(match[1])
            for run in runs
            for path in list(run.samples.values())[-1:]
            for file in path.glob("*_original.wav")
            if (match := re.match(r"(\d+)_", file.name))
        }
    )
    if not numbers:
        return "<h2>Samples</h2><p>none</p>"
    hint = "If another player of the same sample is started, it continues at the same position." if steps else ""
    made = [f"<h2>Samples</h2><p>{hint}</p>"]
    for number in numbers:
        rows = [["original", *(_player(run, max(run.samples, default=None), f"{number}_original") for run in runs)]]
        rows += [[f"step {step}", *(_player(run, step, f"{number}_reconstruction") for run in runs)] for step in steps]
        pictures = "".join(_pictures(run, name, number) for run, name in zip(runs, names, strict=True))
        made.append(
            f'<section class="card"><h3>Sample {number}</h3>{table(rows, ["", *names])}'
            f'<details><summary>Spectrograms</summary><div class="grid">{pictures}</div></details></section>'
        )
    return "".join(made)


def _player(run, step, name):
    return wav_player(run.samples[step] / f"{name}.wav") if step in run.samples else ""


def _pictures(run, name, number):
    """Return the spectrograms of a run's last sample, or "" if a file cannot be read.

    They show the original, the reconstruction and their difference.
    """
    if not run.samples:
        return ""
    step, folder = list(run.samples.items())[-1]
    try:
        original, rate = soundfile.read(folder / f"{number}_original.wav", always_2d=True)
        made, _ = soundfile.read(folder / f"{number}_reconstruction.wav", always_2d=True)
    except (OSError, soundfile.LibsndfileError):
        return ""
    length = min(len(original), len(made))
    sounds = {"original": original, "reconstruction": made, "difference": made[:length] - original[:length]}
    drawn = "".join(
        f"<small>{title}</small>{picture.spectrogram(audio, original, rate, f'spectrogram: {title}')}"
        for title, audio in sounds.items()
    )
    return f"<figure><figcaption>{escaped(name)}<small>step {step}</small></figcaption>{drawn}</figure>"


def _spread(steps, count):
    if len(steps) <= count:
        return steps
    places = {round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(count)} if count > 1 else {len(steps) - 1}
    return [steps[place] for place in sorted(places)]


def _configs(runs, names, reference):
    """Return a table of the keys in which a run differs from the base config.

    The values in bold differ between the runs.
    """
    base = _comparable(reference)
    configs = [_comparable(run.config) for run in runs]
    rows = []
    for key in sorted(base.keys() | {key for config in configs for key in config}):
        values = [config.get(key) for config, run in zip(configs, runs, strict=True) if run.config]
        if any(value != base.get(key) for value in values):
            shown = [config.get(key, "") if run.config else "?" for config, run in zip(configs, runs, strict=True)]
            form = "{}" if len(set(shown)) == 1 else "<b>{}</b>"
            rows.append([breakable(key), _text(base.get(key, "")), *(form.format(_text(value)) for value in shown)])
    text = "<p>Keys that differ from configs/base.py. Values in bold differ between the runs.</p>"
    return f"<h2>Config</h2>{text}{table(rows, ['key', 'base.py', *names])}"


def _text(value):
    """Return a JSON value as HTML. Only strings may break after dots."""
    return breakable(value) if value.startswith('"') else escaped(value)


def _comparable(config):
    """Return a flat config with JSON values, which makes tuples equal to lists."""
    return {
        key: json.dumps(value) if not (isinstance(value, float) and not math.isfinite(value)) else str(value)
        for key, value in flatten(config).items()
    }
