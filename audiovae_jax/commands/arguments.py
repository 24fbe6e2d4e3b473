"""A command's description, and the parser of its flags and arguments."""

import dataclasses
import difflib
import functools
import re
import sys
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
from absl import app, flags
from ml_collections import config_flags

from audiovae_jax.commands import bundled_configs
from audiovae_jax.config import configuration, named_losses
from audiovae_jax.data.audio.audio_file import EXTENSIONS
from audiovae_jax.errors import ConfigError, printable
from audiovae_jax.storage import server
from audiovae_jax.storage.bucket_path import BucketPath

RESUMABLE = "everything saved is complete; run the same command to resume"
MODEL = "MODEL"
# Error messages of absl and Python about flag values, with clearer replacements.
_CLEARER_MESSAGES = {
    r": invalid literal for int\(\) .*": " must be a whole number",
    r": could not convert string to float.*": " must be a number",
    r"^Missing value for flag (\S+)": r"\1 needs a value: \1=VALUE",
}


@dataclasses.dataclass(frozen=True)
class Command:
    """A command with the arguments model, inputs, output, then flags.

    Attributes:
      name: the name that users type; `cli.COMMANDS` has its summary.
      details: text for `--help`, after the summary.
      main: function of the positional arguments; it reads the flags itself.
      positional: names of the positional arguments. A name that ends in "..." stands for one or more arguments. A name
        in brackets is optional.
      define_flags: function that defines the command's flags.
      bucket_output: whether OUT may be a URL, of a bucket or of the hub.
      interrupted: message after Ctrl-C.
    """

    name: str
    main: Callable[..., None]
    details: str = ""
    positional: tuple[str, ...] = ()
    define_flags: Callable[[], None] = lambda: None
    bucket_output: bool = False
    interrupted: str = RESUMABLE


def run(command: Command, summary: str):
    """Parse `sys.argv` and run a command, or print its help and exit.

    Args:
      command: the command.
      summary: first line of its help.

    Raises:
      ConfigError: a flag or an argument is not valid.
    """
    before = set(flags.FLAGS)
    command.define_flags()
    for name in set(flags.FLAGS) - before:  # otherwise --help omits them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    usage = " ".join([sys.argv[0], *command.positional, "[flags]"])
    text = "\n\n".join(filter(None, [summary, command.details, f"  {usage}\n"]))
    sys.modules["__main__"].__doc__ = text.replace("%", "%%")
    app.run(lambda argv: command.main(*_positional(argv, command)), flags_parser=functools.partial(_parse, command))


def define_config_flag():
    """Define `--config=FILE[:NAME,NAME]` and `--config.KEY=VALUE` for every key."""
    what = "config file or name, and configs to add: base:lightweight,staged; --config.KEY=VALUE sets a key"
    config_flags.DEFINE_config_file("config", None, what, flags.FLAGS)
    flags.FLAGS["config"].default_as_str = "'base'"  # `_parse` loads it, for readable errors on unknown keys


def read_config(workdir: Path | BucketPath, reader=None) -> ml_collections.ConfigDict:
    """Return the finalized config from the flags.

    If `init_from` is a torch file, the settings of its run are adopted.

    Args:
      workdir: workdir of the run.
      reader: a `warm_start.TorchReader` that keeps the contents of a torch file for `train`.

    Raises:
      ConfigError: a key is unknown.
      CheckpointError: `init_from` cannot be read.
    """
    from audiovae_jax.run import warm_start  # imported late, since it loads Orbax, which --help does not need

    config = flags.FLAGS.config
    given = {key for _, key in configuration.override_keys(sys.argv)}
    lines = warm_start.adopt_settings(config, given, workdir, reader)
    if lines and jax.process_index() == 0:
        print("\n".join(lines), flush=True)
    return configuration.finalize(config, bundled_configs.reference())


def config_name() -> str:
    """Return a name for the config flag.

    It is `tiny` for `--config=configs/tiny.py` and `base_lightweight` for `configs/base.py:lightweight`.
    """
    path, _, names = _config_argument(sys.argv)[1].partition(":")
    return "_".join([Path(path).stem, *filter(None, names.split(","))])


def whole_numbers(flag: str, values: list[str] | None) -> tuple[int, ...] | None:
    """Return the values of a list flag as integers.

    Raises:
      ConfigError: a value is not an integer.
    """
    try:
        return None if values is None else tuple(int(value) for value in values)
    except ValueError:
        raise ConfigError(f"--{flag}={','.join(values)} must be integers separated by commas") from None


def _positional(argv, command):
    given, names = argv[1:], command.positional
    open_ended = any(name.endswith("...") for name in names)
    needed = [name for name in names if not name.startswith("[")]
    if len(given) < len(needed) or (len(given) > len(names) and not open_ended):
        usage = f"usage: {' '.join([command.name, *names])} [flags] (--help lists them)"
        wants_model = needed[:1] in ([MODEL], [f"{MODEL}..."]) and len(given) < len(needed)
        if wants_model and not (given and _may_be_model(given[0].partition("=")[2] or given[0])):
            found = f": {printable(given[0])} is not a model" if given else ""
            raise ConfigError(f"no model was given{found}; {usage}")
        raise ConfigError(f"{len(given)} argument{'' if len(given) == 1 else 's'} given; {usage}")
    if names[-1:] == ("OUT",) and server.is_url(given[-1]) and not command.bucket_output:
        raise ConfigError(
            f"{given[-1]}: {command.name} writes to this machine only; give a local path, then copy the output"
        )
    return given


def _parse(command, argv):
    flags.FLAGS.set_gnu_getopt()  # flags may follow positional arguments
    if "config" not in flags.FLAGS:
        return _parsed(command, argv)
    position, given = _config_argument(argv)
    path, _, names = given.partition(":")
    path = bundled_configs.locate(path)
    if position is None:
        position = 1
        argv.insert(position, "--config")
    argv[position] = f"--config={path}:{names}" if names else f"--config={path}"
    module = configuration.load_module(path)
    try:
        config = module.get_config(*([names] if names else []))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--config={path}: get_config failed: {type(error).__name__}: {error}") from error
    named_losses.declare(config, [key for _, key in configuration.override_keys(argv)])
    for i, key in list(configuration.override_keys(argv)):
        if key in configuration.LEGACY_KEYS:
            new = configuration.LEGACY_KEYS[key]
            configuration.warn_legacy_key(key, new)
            argv[i] = argv[i].replace(f"config.{key}", f"config.{new}", 1)
        elif not configuration.has_key(config, key):
            raise ConfigError(f"config has no key {key!r}{configuration.suggest_key(key, config)}")
    flags.FLAGS["config"].parser = _LoadedConfig(config)
    return _parsed(command, argv, config)


class _LoadedConfig(flags.ArgumentParser):
    """A flag parser that ignores the text and returns the config of `_parse`."""

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__()
        self._config = config.lock()

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        return self._config


def _parsed(command, argv, config=None):
    """Return the positional arguments. Convert absl's errors to ConfigError."""
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # absl has printed the help, and would end with status 1
        sys.exit(0)
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        if name == "model" and command.positional[:1] in ((MODEL,), (f"{MODEL}...",)):
            raise ConfigError(f"give {command.name} the model as its first argument, without --model=") from None
        known = {flag.name: f"--{flag.name}" for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
        known |= {key: f"--config.{key}" for key in configuration.flatten(config or {})}
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        more = f"did you mean {known[near[0]]}?" if near else "--help lists them"
        raise ConfigError(f"{command.name} has no flag --{name}; {more}") from None
    except flags.Error as error:
        text = str(error).removeprefix("flag ")
        for pattern, plainly in _CLEARER_MESSAGES.items():
            text = re.sub(pattern, plainly, text)
        raise ConfigError(text) from None


def _config_argument(argv):
    """Return `(position, value)` of the config flag, or `(None, default)`.

    `--config VALUE` is rewritten to `--config=VALUE` in `argv`.
    """
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            if not equals:
                value = argv[i + 1] if i + 1 < len(argv) else ""
                argv[i : i + 2] = [f"--config={value}"]
            return i, value
    return None, str(bundled_configs.FOLDER / "base.py")


def _may_be_model(path: str) -> bool:
    """Return False only if there is certainly no model at `path`."""
    if server.is_url(path):
        return True
    # Imported late, since it loads Orbax.
    from audiovae_jax.persistence.locate import FOLDERS, Kind, locate

    kind = locate(path).kind
    if kind is Kind.TORCH_FILE:
        return Path(path).suffix.lower() not in EXTENSIONS
    return kind in FOLDERS
