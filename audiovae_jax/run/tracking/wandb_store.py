"""Weights & Biases in offline mode: a run in `wandb/`, uploaded by `wandb sync`."""

import io
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from audiovae_jax.run.tracking.writer import Writer
from audiovae_jax.storage import bucket_path
from audiovae_jax.storage.bucket_path import BucketPath

NAME = "wandb.json"  # in a workdir: the id of its run
_STEP = "step"  # the x-axis of metrics, since wandb's own counter cannot go back


class WandbStore(Writer):
    """The wandb run of a workdir; each session has its own folder, with the same id.

    Args:
      workdir: of the run. Its name is also the name of the wandb run. `wandb/` is in the workdir, or in the current
        folder if the workdir is in a bucket.
      project: name of the project.
      params: the flattened config.
    """

    def __init__(self, workdir: Path | BucketPath, project: str, params: dict[str, Any]):
        import wandb

        self._wandb = wandb
        try:
            run_id = json.loads((workdir / NAME).read_text())["id"]
        except (OSError, ValueError, KeyError, TypeError):
            run_id = os.urandom(8).hex()
            bucket_path.write_json(workdir / NAME, {"id": run_id})
        here = Path.cwd() if isinstance(workdir, BucketPath) else workdir.resolve()
        name = workdir.name if isinstance(workdir, BucketPath) else here.name
        self._run = wandb.init(
            mode="offline", project=project, name=name, id=run_id, dir=str(here), config=params,
            settings=wandb.Settings(console="off", silent=True, disable_git=True, save_code=False),
        )  # fmt: skip
        self._run.define_metric("*", step_metric=_STEP)

    def scalars(self, values, step):
        self._run.log({**values, _STEP: step})

    def text(self, name, text, step):
        self._run.summary[f"{name}.step_{step:08d}"] = text

    def audio(self, name, audio, step, sample_rate):
        audio = np.clip(audio, -1, 1)
        self._run.log({name: self._wandb.Audio(audio, sample_rate=sample_rate), _STEP: step})

    def image(self, name, png, step):
        from PIL import Image

        self._run.log({name: self._wandb.Image(Image.open(io.BytesIO(png))), _STEP: step})

    def model(self, folder):
        self._run.log_artifact(str(folder), name="best_model", type="model")

    def close(self, finished):
        self._run.finish(0 if finished else 1)
