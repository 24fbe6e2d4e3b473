"""MLflow: a run's parameters, metrics, samples and best model."""

import json
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from audiovae_jax.run.tracking.writer import Writer
from audiovae_jax.storage import bucket_path
from audiovae_jax.storage.bucket_path import BucketPath

NAME = "mlflow.json"  # in a workdir: its run ids, by tracking URI
_MAX_PARAM = 500  # characters, the limit of old servers
_PARAMS_AT_ONCE = 100  # the limit of the REST API
# By default, MLflow retries a dead server for minutes.
_IMPATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "20"}
_QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class MlflowStore(Writer):
    """The MLflow run of a workdir, created or resumed.

    Args:
      workdir: of the run. Its name is also the name of the MLflow run.
      uri: of a server or store; None for MLFLOW_TRACKING_URI, or if that is not set, a database next to the workdir.
      experiment: name of the experiment, created if missing.
      params: the flattened config.
    """

    def __init__(self, workdir: Path | BucketPath, uri: str | None, experiment: str, params: dict[str, Any]):
        for name, value in (_IMPATIENCE | _QUIET).items():
            os.environ.setdefault(name, value)
        for logger in ("mlflow", "alembic"):  # they log every table of a new database
            logging.getLogger(logger).setLevel(logging.WARNING)
        from mlflow.tracking import MlflowClient

        uri, artifacts = _place(workdir, uri)
        self._client = MlflowClient(tracking_uri=uri)
        self._run_id = self._resumed(workdir, uri) or self._created(workdir, uri, experiment, artifacts)
        self._log_params(params)

    def scalars(self, values, step):
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        self._client.log_batch(
            self._run_id, metrics=[Metric(name, float(value), now, step) for name, value in values.items()]
        )

    def text(self, name, text, step):
        self._client.set_tag(self._run_id, f"{name}.step_{step:08d}", text[:5000])

    def audio(self, name, audio, step, sample_rate):
        with tempfile.TemporaryDirectory(prefix="audiovae_jax_mlflow_") as folder:
            path = Path(folder) / f"{name.replace('/', '_')}.wav"
            soundfile.write(path, np.clip(audio, -1, 1), sample_rate, subtype="PCM_16")
            self._client.log_artifact(self._run_id, str(path), f"samples/step_{step:08d}")

    def image(self, name, png, step):
        with tempfile.TemporaryDirectory(prefix="audiovae_jax_mlflow_") as folder:
            path = Path(folder) / f"{name.replace('/', '_')}.png"
            path.write_bytes(png)
            self._client.log_artifact(self._run_id, str(path), f"samples/step_{step:08d}")

    def model(self, folder):
        self._client.log_artifacts(self._run_id, str(folder), "best_model")

    def close(self, finished):
        self._client.set_terminated(self._run_id, "FINISHED" if finished else "KILLED")

    def _resumed(self, workdir, uri):
        """Resume the workdir's run in this store, if any, and return its id."""
        from mlflow.exceptions import MlflowException

        run_id = _known(workdir).get(uri)
        if run_id is None:
            return None
        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if getattr(error, "error_code", "") == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        if run.info.lifecycle_stage != "active":
            return None
        self._client.update_run(run_id, status="RUNNING")
        return run_id

    def _created(self, workdir, uri, experiment, artifacts):
        found = self._client.get_experiment_by_name(experiment)
        number = found.experiment_id if found else self._client.create_experiment(experiment, artifacts)
        workdir = workdir if isinstance(workdir, BucketPath) else workdir.resolve()
        run_id = self._client.create_run(number, run_name=workdir.name).info.run_id
        bucket_path.write_json(workdir / NAME, {**_known(workdir), uri: run_id})
        self._client.set_tag(run_id, "workdir", str(workdir))
        return run_id

    def _log_params(self, params):
        """Log parameters, or tags where they have changed.

        MLflow does not allow a parameter to change when a run is resumed.
        """
        from mlflow.entities import Param

        there = self._client.get_run(self._run_id).data.params
        texts = {name: str(value)[:_MAX_PARAM] for name, value in params.items()}
        new = [Param(name, text) for name, text in texts.items() if name not in there]
        for first in range(0, len(new), _PARAMS_AT_ONCE):
            self._client.log_batch(self._run_id, params=new[first : first + _PARAMS_AT_ONCE])
        for name, text in texts.items():
            if name in there and there[name] != text:
                self._client.set_tag(self._run_id, f"changed.{name}", text)


def _place(workdir, uri):
    """Return `(tracking URI, artifact location)`; None is the store's default."""
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        return uri, None
    folder = Path.cwd() if isinstance(workdir, BucketPath) else workdir.resolve().parent
    return f"sqlite:///{folder / 'mlflow.db'}", (folder / "mlflow_artifacts").as_uri()


def _known(workdir):
    try:
        known = json.loads((workdir / NAME).read_text())
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}
