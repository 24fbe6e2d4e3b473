"""`average_checkpoints`: one model from the last checkpoints of a run.

The method is that of Izmailov et al., 2018 (arXiv 1803.05407).
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence import model_folder, saved_model
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.persistence.locate import locate_model
from audiovae_jax.storage.bucket_path import BucketPath


def average_checkpoints(
    workdir: str | Path, target: str | Path | BucketPath, *, last: int = 3, steps: Sequence[int] | None = None
) -> list[int]:
    """Write a saved model with the mean parameters of several checkpoints.

    The means are summed in float64 and rounded once. The discriminator is left out. The latent statistics are not
    trained. Those of the newest checkpoint are taken. The metadata has their steps as `averaged_steps`.

    Args:
      workdir: a training workdir, or its URL.
      target: the saved model to write, or its URL.
      last: number of the newest checkpoints to average; used without `steps`.
      steps: steps of the checkpoints to average.

    Returns:
      The steps, ascending.

    Raises:
      CheckpointError: `workdir` has no such checkpoints, one of them cannot be read, or `target` cannot be written.
    """
    model_folder.require_target(target)
    folder = locate_model(workdir).checkpoints
    if folder is None:
        raise CheckpointError(" is a single model; give a training workdir", path=workdir)
    there = Checkpoints(folder, read_only=True).steps()
    steps = sorted(set(there[-last:] if steps is None else steps))
    if len(steps) < 2:
        found = ", ".join(map(str, there)) or "none"
        raise CheckpointError(f": there are {len(steps)} checkpoints to average; it has {found}", path=workdir)
    total = None
    for step in steps:
        loaded = saved_model.open_model(workdir, step=step)
        params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), loaded.variables["params"])
        total = params if total is None else jax.tree.map(np.add, total, params)
    mean = jax.tree.map(lambda leaf, old: (leaf / len(steps)).astype(old.dtype), total, loaded.variables["params"])
    averaged = dataclasses.replace(
        loaded, variables={**loaded.variables, "params": mean}, metadata={"averaged_steps": steps}
    )
    saved_model.save_loaded(averaged, target)
    return steps
