"""Opening the writers that a config enables."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import ml_collections

from audiovae_jax.config import configuration
from audiovae_jax.config.resolve import did_you_mean
from audiovae_jax.errors import ConfigError
from audiovae_jax.run.tracking import mlflow_store, wandb_store
from audiovae_jax.run.tracking.background import Background
from audiovae_jax.run.tracking.events import Events
from audiovae_jax.run.tracking.json_lines import JsonLines
from audiovae_jax.run.tracking.writer import Writers
from audiovae_jax.storage.bucket_path import BucketPath

_PACKAGES = ("mlflow", "wandb")  # installed by extras of the same names
NAMES = ("tensorboard", *_PACKAGES)


def check(config: ml_collections.ConfigDict):
    """Raise ConfigError if a writer in `config.logging.writers` is not available."""
    for name in config.logging.writers:
        if name not in NAMES:
            raise ConfigError(
                f"config.logging.writers has {name!r}{did_you_mean(name, NAMES)}; choose from {', '.join(NAMES)}"
            )
        if name in _PACKAGES and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"config.logging.writers has {name}, which is not installed; pip install -e '.[{name}]', "
                "or leave it out"
            )


def open_writers(
    config: ml_collections.ConfigDict, workdir: Path | BucketPath, first_step: int, warn: Callable[[str], None]
) -> Writers:
    """Open JSON Lines, and the writers of `config.logging`.

    Args:
      config: of the run, validated by `check`.
      workdir: of the run.
      first_step: first step of this session. Records of earlier sessions from this step on are hidden.
      warn: called with a line of text if records are lost.
    """
    writers = [JsonLines(workdir, first_step, warn)]
    if "tensorboard" in config.logging.writers:
        writers.append(Events(workdir, first_step, warn))
    section = config.logging
    params = configuration.flatten(configuration.plain(config))
    if "mlflow" in section.writers:
        place = (section.mlflow_uri, section.mlflow_experiment)
        writers.append(Background("MLflow", lambda: mlflow_store.MlflowStore(workdir, *place, params), warn))
    if "wandb" in section.writers:
        project = section.wandb_project
        writers.append(Background("wandb", lambda: wandb_store.WandbStore(workdir, project, params), warn))
    return Writers(writers)
