"""The start of a run: claim the workdir, get the state, describe the run."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections

from audiovae_jax.config import build, configuration
from audiovae_jax.distributed import agreement, mesh
from audiovae_jax.errors import ConfigError
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import reporter, warm_start
from audiovae_jax.storage import bucket_path
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.training import compilation, program
from audiovae_jax.training.state import create_state, create_train_state

BAD_FILES = "bad_files.jsonl"  # in the workdir; the other processes put their index into the name
_MOST_SKIPPED_SHOWN = 20


def what_all_share(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Return the settings that must be equal in all processes.

    They determine the compiled programs and the points at which the processes synchronize.
    """
    flat = configuration.flatten(configuration.plain(config))
    shared = {key: value for key, value in flat.items() if key not in configuration.HOST_KEYS}
    return shared | {"version of jax": jax.__version__, "devices of a process": jax.local_device_count()}


def claim_workdir(config: ml_collections.ConfigDict, workdir: Path | BucketPath, checkpoints: Checkpoints, write: bool):
    """Check the config of existing checkpoints, and write `config.json`.

    Args:
      config: the config of this run.
      workdir: the run's folder.
      checkpoints: the checkpoints in `workdir`.
      write: whether this process writes the file.

    Raises:
      ConfigError: the workdir belongs to another config, or `config.json` cannot be read or written. For another
        config, the message lists the differing keys.
    """
    path = workdir / "config.json"
    current = configuration.plain(config)
    previous = checkpoints.newest_config()
    if previous is None and checkpoints.steps() and path.exists():
        try:
            previous = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"{path} is not readable as JSON ({error}); restore it or use another --workdir"
            ) from error
    if previous is not None:
        changed = configuration.differences(previous, current)
        if changed:
            raise ConfigError(
                f"--workdir={workdir} holds a run of another config:\n  "
                + "\n  ".join(changed)
                + f"\nuse another --workdir, and --config.init_from={workdir} there to go on from this run"
            )
    if write:
        try:
            bucket_path.write_json(path, current)
        except OSError as error:
            raise ConfigError(f"{path} was not written: {error.strerror or error}") from error


def initial_state(config, recipe, devices, checkpoints: Checkpoints, fingerprint: str, say, reader):
    """Restore the newest checkpoint, load `config.init_from`, or create a new state.

    Progress is reported to `say`, line by line. `reader` has read a torch file at `config.init_from` before.

    Returns:
      `(state, step, validation metrics, data position)`. Without a checkpoint of this run, the metrics are None and
      the position is empty.

    Raises:
      CheckpointError: there are checkpoints, but none is intact.
    """
    sharding = mesh.replicated(devices)
    shape = build.example_shape(config)
    if agreement.of_first(checkpoints.steps()):
        restored = checkpoints.restore(program.abstract_state(recipe, devices, shape), sharding)
        for reason in restored.damaged:
            say(f"warning: passed over {reason}")
        say(f"going on from step {restored.step}")
        if restored.data.get("fingerprint") != fingerprint:
            say(
                "warning: the audio under config.data.root, or how it is split, is not what it was when this run was "
                "stopped; crops from here on differ from those of a run left alone"
            )
        return restored.state, restored.step, restored.metrics, restored.data
    with reporter.timed("drawing the initial parameters", say), compilation.sparing():
        state = jax.block_until_ready(create_state(recipe, devices, shape))
    if config.init_from is None:
        return state, 0, None, {}
    state = warm_start.take_over(config, recipe, state, sharding, say, reader)
    warm_start.require_steps_to_make(config, int(state.step))
    return state, int(state.step), None, {}


def describe(config, recipe, data) -> list[str]:
    """Describe the model, the discriminator, the batch and the data, in lines."""
    shapes = jax.eval_shape(functools.partial(create_train_state, recipe, build.example_shape(config)))
    count = count_parameters(shapes.params)
    with_statistics = count + count_parameters(shapes.latent_statistics)
    lines = [
        f"model: {count:,} parameters ({with_statistics:,} with latent statistics), "
        f"hop {recipe.model.hop_length} samples, {recipe.model.dtype}"
    ]
    if recipe.discriminator is not None:
        lines.append(
            f"discriminator: {type(recipe.discriminator).__name__}, "
            f"{count_parameters(shapes.discriminator_params):,} trainable parameters"
        )
        if config.adversarial.warmup_steps >= config.num_steps:
            lines.append("warning: config.adversarial.warmup_steps is not below num_steps: it will never take part")
    seconds = config.data.crop_length / config.data.sample_rate
    lines.append(
        f"batch: {config.batch_size} crops of {config.data.crop_length} samples ({seconds:.2f} s) "
        f"on {jax.device_count()} {jax.devices()[0].platform} device(s)"
    )
    if data.catalog is None:
        lines.append("data: built-in music generator (config.data.root is not set)")
        return lines
    found = data.catalog
    minutes, held = (sum(track.seconds for track in side) / 60 for side in (found.train, found.validation))
    share = len(found.validation) / len({track.key for track in (*found.train, *found.validation)})
    lines.append(
        f"data: {len(found.train)} to train on ({minutes:.1f} min) and {len(found.validation)} for validation "
        f"({held:.1f} min, {share:.0%} of all), of {found.origin}"
    )
    if {track.key for track in found.train} & {track.key for track in found.validation}:
        lines.append("warning: there is one usable file, so training and validation share it")
    lines += [f"skipped {name}: {reason}" for name, reason in found.skipped[:_MOST_SKIPPED_SHOWN]]
    if len(found.skipped) > _MOST_SKIPPED_SHOWN:
        lines.append(f"and {len(found.skipped) - _MOST_SKIPPED_SHOWN} more; all are listed in {BAD_FILES}")
    return lines
