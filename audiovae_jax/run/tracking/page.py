"""Runs as one HTML page: curves, samples over time, warnings and what their configs differ in."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np

from audiovae_jax.config.configuration import flatten
from audiovae_jax.html import document, escaped, picture, player, table
from audiovae_jax.run.tracking import curves
from audiovae_jax.run.tracking.history import History
from audiovae_jax.storage import atomic

_FIRST = ("val", "train")  # groups that are open
_RISEN = 1.1  # times its best that a validation loss is worth a warning
_LATEST = 20  # remarks that are shown of a run


def write(runs: list[History], reference: dict[str, Any], path: Path, *, sample_steps: int):
    """Write the page; OSError where that fails.

    Args:
      runs: side by side, in this order.
      reference: the base config, with which theirs are compared.
      path: of the file.
      sample_steps: of how many steps samples are heard, of all that there are: evenly, the first and the last among
        them.
    """
    names = _names([run.workdir for run in runs])
    body = _summary(runs, names) + _warnings(runs, names) + _curves(runs, names)
    body += _samples(runs, names, sample_steps) + _configs(runs, names, reference)
    title = f"Run {names[0]}" if len(runs) == 1 else f"{len(runs)} runs"
    with atomic.replacing(path) as temporary:
        temporary.write_text(document(title, body), encoding="utf-8")


def warnings(run: History) -> list[str]:
    """What of a run deserves a look: its own warnings, numbers that are none, a validation loss that rises."""
    found = []
    for name, (steps, values) in run.scalars.items():
        bad = ~np.isfinite(values)
        if bad.any():
            found.append(f"{name} was not finite {bad.sum()} times, first at step {steps[bad][0]}")
    steps, values = run.scalars.get("val/total_loss", (np.zeros(0), np.zeros(0)))
    if len(values) > 1 and np.isfinite(values).any():
        best = int(np.nanargmin(values))
        if values[best] > 0 and values[-1] > _RISEN * values[best]:
            found.append(
                f"val/total_loss is {values[-1]:.4g} at step {steps[-1]}; "
                f"it was {values[best]:.4g} at step {steps[best]}"
            )
    said = [f"step {step}: {text}" for step, name, text in run.remarks]
    if len(said) > _LATEST:
        found.append(f"the last {_LATEST} of {len(said)} remarks:")
    return found + said[-_LATEST:]


def _names(workdirs):
    """Each run's shortest name that no other has."""
    names = [workdir.resolve().name for workdir in workdirs]
    return [name if names.count(name) == 1 else str(path) for name, path in zip(names, workdirs, strict=True)]


def _summary(runs, names):
    rows = []
    for i, (run, name) in enumerate(zip(runs, names, strict=True)):
        colour = curves.COLOURS[i % len(curves.COLOURS)]
        steps, values = run.scalars.get("val/total_loss", (np.zeros(0), np.zeros(0)))
        finite = np.isfinite(values)
        best = steps[finite][values[finite].argmin()] if finite.any() else None
        length = run.config.get("num_steps")
        rows.append([
            f'<b style="color:{colour}">{escaped(name)}</b>',
            escaped(f"{run.last_step} of {length}" if length else run.last_step),
            escaped("" if best is None else f"{values[finite].min():.4f} at step {best}"),
            escaped("" if not finite.any() else f"{values[finite][-1]:.4f} at step {steps[finite][-1]}"),
            escaped(_bad_files(run)),
        ])  # fmt: skip
    return table(rows, ["run", "step", "best val/total_loss", "last val/total_loss", "bad files"])


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


def _curves(runs, names):
    groups: dict[str, list[str]] = {}
    for metric in sorted({metric for run in runs for metric in run.scalars}):
        groups.setdefault(metric.rpartition("/")[0] or "others", []).append(metric)
    made = ["<h2>Curves</h2>"]
    for group in sorted(groups, key=lambda name: (_FIRST.index(name) if name in _FIRST else len(_FIRST), name)):
        charts = [
            curves.chart(
                metric, {name: run.scalars.get(metric, ((), ())) for run, name in zip(runs, names, strict=True)}
            )
            for metric in groups[group]
        ]
        opened = " open" if group in _FIRST else ""
        made.append(
            f'<details{opened}><summary>{escaped(group)}</summary><div class="charts">{"".join(charts)}</div></details>'
        )
    return "".join(made)


def _samples(runs, names, count):
    made = ["<h2>Samples</h2>"]
    for run, name in zip(runs, names, strict=True):
        steps = _spread(list(run.samples), count)
        if not steps:
            made.append(f"<p>{escaped(name)}: none</p>")
            continue
        last = run.samples[steps[-1]]
        numbers = sorted(
            {int(match[1]) for path in last.glob("*_original.wav") if (match := re.match(r"(\d+)_", path.name))}
        )
        rows = []
        for number in numbers:
            rows.append([
                escaped(number),
                player(last / f"{number}_original.wav"),
                *(player(run.samples[step] / f"{number}_reconstruction.wav") for step in steps),
            ])  # fmt: skip
        pictures = [_picture(last / f"{number}.png", f"spectrograms of sample {number}") for number in numbers]
        header = ["", "original", *(f"step {step}" for step in steps)]
        made.append(f"<h3>{escaped(name)}</h3>{table(rows, header)}")
        made.append(
            f'<details><summary>spectrograms at step {steps[-1]}</summary><div class="charts">{"".join(pictures)}'
            "</div></details>"
        )
    return "".join(made)


def _picture(path, description):
    try:
        return picture(path.read_bytes(), description)
    except OSError:
        return ""


def _spread(steps, count):
    if len(steps) <= count:
        return steps
    places = {round(i * (len(steps) - 1) / max(1, count - 1)) for i in range(count)} if count > 1 else {len(steps) - 1}
    return [steps[place] for place in sorted(places)]


def _configs(runs, names, reference):
    """The keys in which the runs differ from the base config, or from each other."""
    base = _comparable(reference)
    configs = [_comparable(run.config) for run in runs]
    rows = []
    for key in sorted(base.keys() | {key for config in configs for key in config}):
        values = [config.get(key) for config, run in zip(configs, runs, strict=True) if run.config]
        if any(value != base.get(key) for value in values):
            shown = [config.get(key, "") if run.config else "?" for config, run in zip(configs, runs, strict=True)]
            form = "{}" if len(set(shown)) == 1 else "<b>{}</b>"
            rows.append([escaped(key), escaped(base.get(key, "")), *(form.format(escaped(value)) for value in shown)])
    text = "<p>What differs from configs/base.py; bold where the runs differ among themselves.</p>"
    return f"<h2>Config</h2>{text}{table(rows, ['key', 'base.py', *names])}"


def _comparable(config):
    """A config's values as JSON, in which tuples are lists."""
    return {
        key: json.dumps(value) if not (isinstance(value, float) and not math.isfinite(value)) else str(value)
        for key, value in flatten(config).items()
    }
