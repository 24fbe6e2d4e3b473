"""Reading a workdir's record of its run: scalars, remarks, samples, config."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from audiovae_jax.errors import DataError, printable
from audiovae_jax.run.tracking import json_lines, sessions

NEEDED = f"{json_lines.NAME}, {sessions.NAME}, config.json and samples/"  # the parts of a workdir that are read
_TOGETHER = 8  # recent remarks that are checked for duplicates
_SAMPLES = re.compile(r"step_(\d+)$")


@dataclasses.dataclass(frozen=True)
class History:
    """The record of a run.

    Attributes:
      workdir: of the run.
      config: as nested dicts; empty if `config.json` cannot be read.
      scalars: `{name: (steps, values)}`, `[N]` each, ordered by step.
      remarks: `(step, name, text)` of each.
      samples: folders of samples, by step.
      sessions: see `sessions.read`.
    """

    workdir: Path
    config: dict[str, Any]
    scalars: dict[str, tuple[np.ndarray, np.ndarray]]
    remarks: list[tuple[int, str, str]]
    samples: dict[int, Path]
    sessions: list[dict[str, Any]]

    @property
    def last_step(self) -> int:
        """The last step that has a scalar."""
        return int(max((steps[-1] for steps, _ in self.scalars.values()), default=0))


def read(workdir: Path) -> History:
    """Read the workdir of a run, which may still be running.

    Raises:
      DataError: the workdir does not exist, or has no record of a run.
    """
    if not workdir.is_dir():
        raise DataError(f"{printable(workdir)} does not exist; give the workdir of a run")
    path = workdir / json_lines.NAME
    numbers: dict[str, dict[int, float]] = {}
    remarks: list[tuple[int, str, str]] = []
    try:
        if path.is_file():
            for record in json_lines.read(path):
                _take_record(record, numbers, remarks)
        found_sessions = sessions.read(workdir)
    except OSError as error:
        raise DataError(f"{printable(path)} cannot be read: {error.strerror or error}") from error
    if not numbers:
        raise DataError(f"{printable(workdir)} has no record of a run: there are no scalars in {json_lines.NAME}")
    try:
        config = json.loads((workdir / "config.json").read_text())
    except (OSError, ValueError):
        config = {}
    scalars = {}
    for name, values in numbers.items():
        steps = sorted(values)
        scalars[name] = (np.asarray(steps), np.asarray([values[step] for step in steps]))
    found = {
        int(match[1]): path for path in (workdir / "samples").glob("step_*") if (match := _SAMPLES.match(path.name))
    }
    samples = {step: found[step] for step in sorted(found)}
    return History(workdir, config if isinstance(config, dict) else {}, scalars, remarks, samples, found_sessions)


def _take_record(record, numbers, remarks):
    step = record["step"]
    scalars = record.get("scalars")
    for name, value in scalars.items() if isinstance(scalars, dict) else ():
        try:
            numbers.setdefault(name, {})[step] = float(value)
        except (TypeError, ValueError):
            continue
    if isinstance(text := record.get("text"), str):
        # A warning may also be recorded under its own name.
        said = [other for at, _, other in remarks[-_TOGETHER:] if at == step]
        if not any(text.endswith(other) or other.endswith(text) for other in said):
            remarks.append((step, str(record.get("name", "")), text))
