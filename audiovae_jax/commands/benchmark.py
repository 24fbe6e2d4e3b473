"""The command `benchmark`."""

import os
import signal
import sys

from absl import flags

from audiovae_jax.commands import arguments, bundled_configs
from audiovae_jax.commands.arguments import Command
from audiovae_jax.config import configuration
from audiovae_jax.errors import ConfigError
from audiovae_jax.performance.benchmark import command as benchmark

# The flags of each subcommand. All subcommands accept --config and --json.
_USED = {
    "step": ("batch_size", "crop", "adversarial", "against", "repeats", "warmup", "profile"),
    "codec": ("seconds", "batch_size", "against", "repeats", "warmup"),
    "data": ("batch_size", "crop", "against", "repeats", "warmup"),
    "compile": ("batch_size", "crop", "adversarial"),
    "memory": ("batch_size", "crop", "adversarial", "against", "repeats"),
    "learning": ("batch_size", "crop", "adversarial", "against", "picture"),
}


def _flags():
    arguments.define_config_flag()
    flags.DEFINE_integer("batch_size", None, "items per batch; default the config's, for codec 1", lower_bound=1)
    flags.DEFINE_integer("crop", None, "samples per item; default the config's", lower_bound=1)
    flags.DEFINE_bool("adversarial", None, "whether to use the discriminator; default the config's")
    flags.DEFINE_float("seconds", 10.0, "length of each signal for codec", 0.1, 3600)
    flags.DEFINE_list(
        "against",
        [],
        "systems to compare with: torch, torch_compile, oobleck and oobleck_compile (codec), whole (data)",
    )
    flags.DEFINE_integer("repeats", 5, "measured rounds", lower_bound=1)
    flags.DEFINE_integer("warmup", 1, "rounds before the measured ones", lower_bound=0)
    flags.DEFINE_bool("profile", False, "for step, report the time of each part")
    flags.DEFINE_string("json", None, "file for the report as JSON")
    flags.DEFINE_string("picture", None, "for learning, file for the curves: .svg or .png")


def _benchmark(subcommand, model=None):
    _require_used(subcommand)
    # Other systems and measuring processes need memory on the same accelerator.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))  # so that child processes end too
    values = flags.FLAGS
    signals = (values.batch_size or 1) if subcommand == "codec" else 1
    batch_size = None if subcommand == "codec" else values.batch_size
    benchmark.set_keys(values.config, batch_size=batch_size, crop=values.crop, adversarial=values.adversarial)
    report = benchmark.run(
        subcommand,
        configuration.finalize(values.config, bundled_configs.reference()),
        json_path=values.json,
        against=values.against,
        repeats=values.repeats,
        warmup=values.warmup,
        profiled=values.profile,
        seconds=values.seconds,
        signals=signals,
        model=model,
        picture=values.picture,
    )
    print("\n".join(benchmark.lines(report)), flush=True)


def _require_used(subcommand):
    for flag in {flag for used in _USED.values() for flag in used} - set(_USED.get(subcommand, flags.FLAGS)):
        if flags.FLAGS[flag].present:
            used = ", ".join(f"--{name}" for name in _USED[subcommand])
            raise ConfigError(f"benchmark {subcommand} has no flag --{flag}; its flags are --config, --json, {used}")


BENCHMARK = Command(
    name="benchmark",
    details="--config describes the measured step, codec or data. codec can also measure a trained MODEL.",
    main=_benchmark,
    positional=("step|codec|data|compile|memory|learning", "[MODEL]"),
    define_flags=_flags,
    interrupted="no report was made",
)
