"""Storing batches of skipped updates in the workdir.

The files and positions of crops are stored, and the audio of the first few batches.
"""

import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from audiovae_jax.data.feeding.origin import Origin
from audiovae_jax.storage.bucket_path import BucketPath

FOLDER = "bad_batches"  # in a workdir
_PATIENCE = 10.0  # seconds that training waits for a bucket
_MAX_DESCRIBED = 1000  # limits the folder of a run that skips many updates


@dataclasses.dataclass(frozen=True)
class BadBatch:
    """This host's part of a batch whose update was skipped.

    Attributes:
      origins: of its crops, by row; None if unknown.
      not_finite: the rows with NaN or infinite samples.
    """

    origins: tuple[Origin | None, ...]
    not_finite: tuple[int, ...]


class BadBatches:
    """Writes `bad_batches/step_<step>.json`, and `bad_batches/step_<step>/<row>.wav`.

    Args:
      workdir: of the run.
      sample_rate: of the audio, in Hz.
      most_audio: maximum number of steps whose audio is stored.
      host: index of this host. Hosts other than 0 write to `bad_batches/host_<number>`.
      warn: called with a line of text if writing fails.
    """

    def __init__(
        self, workdir: Path | BucketPath, sample_rate: int, most_audio: int, host: int, warn: Callable[[str], None]
    ):
        workdir = workdir.patient(_PATIENCE) if isinstance(workdir, BucketPath) else workdir
        self.folder = workdir / FOLDER / f"host_{host}" if host else workdir / FOLDER
        self._sample_rate, self._most_audio, self._warn = sample_rate, most_audio, warn

    def keep(
        self, step: int, order: int, metrics: dict[str, float], audio: np.ndarray, first: int, records
    ) -> BadBatch:
        """Store a batch.

        Args:
          step: the skipped step, counted from 1.
          order: of the records.
          metrics: of the step.
          audio: this host's rows, `[b, T, C]`.
          first: record number of the first row.
          records: the data source, whose `origin` returns the origin of a record.
        """
        origins = tuple(records.origin(first + row) for row in range(len(audio)))
        not_finite = tuple(row for row, crop in enumerate(audio) if not np.isfinite(crop).all())
        rows = [
            {
                "record": first + row,
                "file": origin and origin.file,
                "start_seconds": origin and origin.start,
                "is_finite": row not in not_finite,
            }
            for row, origin in enumerate(origins)
        ]
        metrics = {name: _as_json(value) for name, value in metrics.items()}
        described = {"step": step, "order": order, "metrics": metrics, "rows": rows}
        name = f"step_{step:08d}" + (f"_order_{order}" if order else "")
        try:
            self._write(name, described, audio)
        except (OSError, soundfile.LibsndfileError) as error:
            self._warn(f"warning: the batch of step {step} was not saved: {getattr(error, 'strerror', None) or error}")
        return BadBatch(origins, not_finite)

    def _write(self, name, described, audio):
        path = self.folder / f"{name}.json"
        if isinstance(self.folder, Path):
            self.folder.mkdir(parents=True, exist_ok=True)
        # A resumed run may repeat steps, whose files are replaced.
        if not path.exists() and len(self._steps(".json")) >= _MAX_DESCRIBED:
            return
        path.write_text(json.dumps(described, indent=2) + "\n")
        target = self.folder / name
        if not target.exists() and len(self._steps("")) >= self._most_audio:
            return
        if isinstance(target, Path):
            target.mkdir(exist_ok=True)
        for row, crop in enumerate(audio):
            (target / f"{row}.wav").write_bytes(_wav(crop, self._sample_rate))

    def _steps(self, suffix):
        try:
            children = list(self.folder.iterdir())
        except FileNotFoundError:  # buckets have no empty folders
            return []
        return [child for child in children if child.name.startswith("step_") and child.suffix == suffix]


def _wav(audio, sample_rate) -> bytes:
    # Float samples, which can be NaN.
    buffer = io.BytesIO()
    soundfile.write(buffer, audio, sample_rate, subtype="FLOAT", format="WAV")
    return buffer.getvalue()


def _as_json(value) -> Any:
    """Return a finite number as it is, another one as a string."""
    return value if math.isfinite(value) else str(value)
