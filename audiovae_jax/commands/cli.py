"""Parse the command line, run a command, and report errors without tracebacks."""

import difflib
import functools
import importlib
import io
import re
import sys
import warnings
from pathlib import Path

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from audiovae_jax.commands import bundled_configs, process
from audiovae_jax.commands.command import MODEL, Command
from audiovae_jax.config import configuration, named_losses
from audiovae_jax.config.resolve import did_you_mean
from audiovae_jax.data.audio.audio_file import EXTENSIONS
from audiovae_jax.errors import ConfigError, UserError, printable
from audiovae_jax.persistence.locate import OURS, Kind, locate
from audiovae_jax.run import warm_start
from audiovae_jax.storage import server
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.training import compilation

# The module of each command. Only the module of the given command is imported.
COMMANDS = {
    "train": "training",
    "report": "training",
    "migrate_config": "training",
    "reconstruct": "codec",
    "encode": "codec",
    "decode": "codec",
    "encode_dataset": "latents",
    "inspect_model": "models",
    "calibrate_latents": "models",
    "export_stablehlo": "models",
    "import_torch": "models",
    "export_torch": "models",
    "make_shards": "data",
    "benchmark": "benchmark",
    "check_data": "data",
    "evaluate": "judging",
    "serve": "judging",
    "convert_musdb18": "data",
    "plan": "planning",
    "doctor": "planning",
}
# Error messages of absl and Python about flag values, with clearer replacements.
_PLAINLY = {
    r": invalid literal for int\(\) .*": " must be a whole number",
    r": could not convert string to float.*": " must be a number",
    r"^Missing value for flag (\S+)": r"\1 needs a value: \1=VALUE",
}


def main(name: str | None = None):
    """Run a command. A `UserError` ends the program with its message and status 1.

    Args:
      name: name of the command; None to read it from the first argument.
    """
    try:
        command = _find(name)
        try:
            _run(command)
        except KeyboardInterrupt:
            sys.exit(f"\ninterrupted; {command.interrupted}")
    except UserError as error:
        sys.exit(f"error: {error}")


def _find(name):
    if name is None:
        given = sys.argv[1] if len(sys.argv) > 1 else ""
        if given in ("", "-h", "--help"):
            print(f"{_program()} COMMAND, of\n")
            for known in COMMANDS:
                print(f"  {known.ljust(18)} {_load(known).description.splitlines()[0]}")
            print(f"\n{_program()} COMMAND --help lists what one takes.")
            sys.exit(0 if given else 1)
        name = given.replace("-", "_")
        if name not in COMMANDS:
            raise ConfigError(f"there is no command {given!r}{did_you_mean(name, COMMANDS)}; --help lists them")
        sys.argv[:2] = [f"{_program()} {name}"]
    return _load(name)


def _load(name) -> Command:
    return getattr(importlib.import_module(f"audiovae_jax.commands.{COMMANDS[name]}"), name.upper())


def _program():
    return "python -m audiovae_jax" if Path(sys.argv[0]).name == "__main__.py" else Path(sys.argv[0]).name


def _run(command):
    # Modules of the user are imported from the working directory.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    # File names that are not valid UTF-8 must still be printable.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    bundled_configs.offer()
    compilation.use_cache()
    process.drop_orbax_log_lines()
    logging.set_verbosity(logging.ERROR)  # XLA logs every backend that it tries
    warnings.filterwarnings("default", message=r"config\.|--", category=DeprecationWarning)
    before = set(flags.FLAGS)
    command.define_flags()
    if command.old_model_flag:
        flags.DEFINE_string("model", None, "as it was given before; now the first argument")
    for name in set(flags.FLAGS) - before:  # otherwise --help omits them
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])
    usage = " ".join([sys.argv[0], *command.positional, "[flags]"])
    sys.modules["__main__"].__doc__ = f"{command.description}\n\n  {usage}\n".replace("%", "%%")
    app.run(lambda argv: command.main(*_positional(argv, command)), flags_parser=functools.partial(_parse, command))


def define_config_flag():
    """Define `--config=FILE[:NAME,NAME]` and `--config.KEY=VALUE` for every key."""
    what = "config file or name, and configs to mix in: base:lightweight,staged; --config.KEY=VALUE sets a key of it"
    config_flags.DEFINE_config_file("config", None, what, flags.FLAGS)
    flags.FLAGS["config"].default_as_str = "'base'"  # `_parse` loads it, for readable errors on unknown keys


def read_config(workdir: Path | BucketPath, reader: warm_start.TorchReader | None = None) -> ml_collections.ConfigDict:
    """Return the finalized config from the flags.

    If `init_from` is a torch file, the settings of its run are adopted.

    Args:
      workdir: workdir of the run.
      reader: keeps the contents of a torch file for `train`.

    Raises:
      ConfigError: a key is unknown.
      CheckpointError: `init_from` cannot be read.
    """
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
        raise ConfigError(f"--{flag}={','.join(values)} must be whole numbers between commas") from None


def _positional(argv, command):
    given, names = argv[1:], command.positional
    if command.old_model_flag and flags.FLAGS.model is not None:
        warnings.warn(
            f"--model={flags.FLAGS.model} is deprecated; give the model first", DeprecationWarning, stacklevel=2
        )
        given = [flags.FLAGS.model, *given]
    open_ended = any(name.endswith("...") for name in names)
    needed = [name for name in names if not name.startswith("[")]
    if len(given) < len(needed) or (len(given) > len(names) and not open_ended):
        takes = " ".join(names) or "no arguments but flags"
        wants_model = needed[:1] in ([MODEL], [f"{MODEL}..."]) and len(given) < len(needed)
        if wants_model and not (given and _may_be_model(given[0].partition("=")[2] or given[0])):
            found = f", and {printable(given[0])} is none" if given else ""
            raise ConfigError(f"no model was given: {command.name} takes {takes}{found}. --help tells more")
        raise ConfigError(f"{command.name} takes {takes}; {len(given)} were given. --help lists the flags")
    if names[-1:] == ("OUT",) and server.is_url(given[-1]) and not command.bucket_output:
        raise ConfigError(
            f"{given[-1]}: {command.name} writes to this machine; give a path here, and copy what it makes afterwards"
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
    """A parser that ignores the flag's text and returns the config loaded by `_parse`."""

    def __init__(self, config: ml_collections.ConfigDict):
        super().__init__()
        self._config = config.lock()

    def parse(self, argument: str) -> ml_collections.ConfigDict:
        return self._config


def _parsed(command, argv, config=None):
    """Return the positional arguments. Convert absl's errors to ConfigError."""
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        name = error.flagname
        if name == "model" and command.positional[:1] in ((MODEL,), (f"{MODEL}...",)):
            raise ConfigError(f"{command.name} takes the model first, without --model=") from None
        known = {flag.name: f"--{flag.name}" for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
        known |= {key: f"--config.{key}" for key in configuration.flatten(config or {})}
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        more = f"did you mean {known[near[0]]}?" if near else "--help lists them"
        raise ConfigError(f"{command.name} has no flag --{name}; {more}") from None
    except flags.Error as error:
        text = str(error).removeprefix("flag ")
        for pattern, plainly in _PLAINLY.items():
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
    kind = locate(path).kind
    return kind in OURS or (kind is Kind.TORCH_FILE and Path(path).suffix.lower() not in EXTENSIONS)
