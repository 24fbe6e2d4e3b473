"""How a run begins: a workdir that is its own, a state to go on from, and what it consists of."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import ml_collections

from audiovae_jax.config import build, configuration
from audiovae_jax.errors import ConfigError
from audiovae_jax.persistence import hosts
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import compilation, report, warm_start
from audiovae_jax.storage import bucket_path
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.training import creation, mesh, program
from audiovae_jax.training.state import count_parameters, create_train_state

BAD_FILES = "bad_files.jsonl"  # of a workdir; the other hosts' have their number in the name
_MOST_SKIPPED_SHOWN = 20


def what_all_share(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What has to be alike in all processes: what they compile, and when they meet."""
    flat = configuration.flatten(configuration.plain(config))
    shared = {key: value for key, value in flat.items() if key not in configuration.HOST_KEYS}
    return shared | {"version of jax": jax.__version__, "devices of a process": jax.local_device_count()}


def claim_workdir(config: ml_collections.ConfigDict, workdir: Path | BucketPath, checkpoints: Checkpoints, write: bool):
    """Write `config.json`; where there are checkpoints, compare with the config that they are of first.

    Raises:
      ConfigError: the workdir belongs to another config; the message lists the differing keys.
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


def initial_state(config, recipe, devices, checkpoints: Checkpoints, fingerprint: str, say):
    """`(state, step, validation metrics, data position)` to start from: newest checkpoint, `init_from`, or fresh.

    The metrics are None where there is no checkpoint of this run yet. What happens is told to `say`, a line at a time.

    Raises:
      CheckpointError: there are checkpoints, but none is whole.
    """
    sharding = mesh.replicated(devices)
    shape = build.example_shape(config)
    if hosts.of_first(checkpoints.steps()):
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
    with report.timed("drawing the initial parameters", say), compilation.sparing():
        state = jax.block_until_ready(creation.create_state(recipe, devices, shape))
    if config.init_from is None:
        return state, 0, None, {}
    state = warm_start.take_over(config, recipe, state, sharding, say)
    warm_start.require_steps_to_make(config, int(state.step))
    return state, int(state.step), None, {}


def describe(config, recipe, data) -> list[str]:
    """What a run consists of, in lines."""
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
