"""Measure: `python scripts/benchmark.py step|codec|data|compile|memory --config=configs/base.py [--against=torch]`."""

import os
import signal
import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.benchmark import command
from audiovae_jax.commands import cli
from audiovae_jax.config import configuration
from audiovae_jax.run import huge_pages
from configs import base

cli.define_config_flag("configs/base.py")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "items; by default the config's", lower_bound=1)
_CROP = flags.DEFINE_integer("crop", None, "samples of an item; by default the config's", lower_bound=1)
_ADVERSARIAL = flags.DEFINE_bool("adversarial", None, "with the discriminator; by default as the config says")
_SECONDS = flags.DEFINE_float("seconds", 10.0, "of audio that codec encodes and decodes", 0.1, 3600)
_AGAINST = flags.DEFINE_list("against", [], "systems to time beside ours: torch, torch_compile, oobleck (codec)")
_REPEATS = flags.DEFINE_integer("repeats", 5, "measured rounds", lower_bound=1)
_WARMUP = flags.DEFINE_integer("warmup", 1, "rounds before them", lower_bound=0)
_PROFILE = flags.DEFINE_bool("profile", False, "step: where the time goes")
_JSON = flags.DEFINE_string("json", None, "file for the report as JSON")


def main(subcommand):
    # Another system, or a process started to measure in, needs room on an accelerator too.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    huge_pages.restart()  # as training does; other systems run with the same pages
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that other processes end too
    config = flags.FLAGS.config
    command.set_keys(config, batch_size=_BATCH_SIZE.value, crop=_CROP.value, adversarial=_ADVERSARIAL.value)
    command.run(
        subcommand,
        configuration.finalize(config, base.get_config()),
        json_path=_JSON.value,
        against=_AGAINST.value,
        repeats=_REPEATS.value,
        warmup=_WARMUP.value,
        profiled=_PROFILE.value,
        seconds=_SECONDS.value,
    )


if __name__ == "__main__":
    cli.run(main, positional=("step|codec|data|compile|memory",), interrupted="no report was made")
