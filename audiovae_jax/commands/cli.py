"""The program's entry: list the commands, or run one.

The list is printed without importing JAX or a command's module.
"""

import importlib
import sys
from pathlib import Path
from typing import NamedTuple

from audiovae_jax.commands import process


class Entry(NamedTuple):
    """A command.

    Attributes:
      module: the module in this package that contains it.
      summary: in one line.
      huge_pages: whether it runs with huge pages, if the system offers them.
    """

    module: str
    summary: str
    huge_pages: bool = False


COMMANDS = {
    "train": Entry("training", "Train an audio VAE, or resume a run from its workdir.", huge_pages=True),
    "report": Entry("training", "Compare runs on one HTML page: curves, samples, warnings and configs."),
    "migrate_config": Entry("training", "Convert the PyTorch system's Hydra configs to a config file."),
    "reconstruct": Entry("codec", "Encode and decode audio files."),
    "encode": Entry("codec", "Encode audio files to files of latents."),
    "decode": Entry("codec", "Decode files of latents to audio files."),
    "encode_dataset": Entry("latents", "Encode a data set to shards of latents, for training on them."),
    "inspect_model": Entry("models", "Describe a model: architecture, size, sample rate, training."),
    "calibrate_latents": Entry("models", "Set a model's latent statistics, for latents of mean 0 and variance 1."),
    "average_checkpoints": Entry("models", "Average the parameters of a run's checkpoints to one saved model."),
    "export_stablehlo": Entry("models", "Export encoder and decoder for serving with only JAX."),
    "import_torch": Entry("models", "Convert a PyTorch file to a saved model, with a report on each tensor."),
    "export_torch": Entry("models", "Write a model to a file for the PyTorch system."),
    "push_to_hub": Entry("models", "Write a model, with a model card, to a repository of the Hugging Face hub."),
    "make_shards": Entry("data", "Convert a data set to shards, for fast reading of crops."),
    "benchmark": Entry(  # like training; other systems inherit the setting
        "benchmark", "Benchmark the step, the codec, the data, compiling, memory or learning.", huge_pages=True
    ),
    "check_data": Entry("data", "Report on a data set: contents, skipped files, reading speed."),
    "evaluate": Entry(
        "judging", "Evaluate models, and compare them with Opus and MP3: a table, and a page with audio."
    ),
    "probe_latents": Entry("judging", "Compare latents by the loss of a small generator that is trained on them."),
    "serve": Entry("judging", "Serve a page for listening to models and editing latents."),
    "convert_musdb18": Entry("data", "Convert MUSDB18 (.stem.mp4) to the layout of MUSDB18-HQ; needs ffmpeg."),
    "plan": Entry("planning", "Plan a run for other machines: memory, largest batch, traffic."),
    "doctor": Entry("planning", "Check this machine before a run: devices, config, data, memory, disk."),
}


def main(name: str | None = None):
    """Run a command. A `UserError` ends the program with its message and status 1.

    Args:
      name: name of the command; None to read it from the first argument.
    """
    if name is None and sys.argv[1:2] in ([], ["-h"], ["--help"]):
        print("\n".join(_list()))
        sys.exit(0 if sys.argv[1:] else 1)
    from audiovae_jax.errors import UserError

    try:
        name = _take_name() if name is None else name
        if COMMANDS[name].huge_pages:
            process.restart_with_huge_pages()
        # Imported late, since they import JAX, which takes seconds.
        from audiovae_jax.commands import arguments

        command = load(name)
        process.prepare()
        try:
            arguments.run(command, COMMANDS[name].summary)
        except KeyboardInterrupt:
            sys.exit(f"\ninterrupted; {command.interrupted}")
    except UserError as error:
        sys.exit(f"error: {error}")


def load(name: str):
    """Import a command's module and return its `Command`."""
    return getattr(importlib.import_module(f"{__package__}.{COMMANDS[name].module}"), name.upper())


def _list():
    yield f"{_program()} COMMAND, where COMMAND is one of\n"
    yield from (f"  {name.ljust(19)} {entry.summary}" for name, entry in COMMANDS.items())
    yield f"\n{_program()} COMMAND --help lists its arguments and flags."


def _take_name():
    """Take the command's name out of `sys.argv`."""
    from audiovae_jax.config.resolve import did_you_mean
    from audiovae_jax.errors import ConfigError

    given = sys.argv[1]
    name = given.replace("-", "_")
    if name not in COMMANDS:
        raise ConfigError(f"there is no command {given!r}{did_you_mean(name, COMMANDS)}; --help lists them")
    sys.argv[:2] = [f"{_program()} {name}"]
    return name


def _program():
    return "python -m audiovae_jax" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name
