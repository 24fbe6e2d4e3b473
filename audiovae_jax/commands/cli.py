"""What the scripts share: reading a config from the command line, and errors without tracebacks."""

import io
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from audiovae_jax.config import configuration
from audiovae_jax.errors import ConfigError, UserError
from audiovae_jax.run import compilation, warm_start

_GOES_ON = "what was saved is whole, and the same command goes on from there"


def run(main: Callable[..., None], positional: tuple[str, ...] = (), interrupted: str = _GOES_ON):
    """Parse flags and call `main`; a user's error ends the program with its message and status 1.

    Args:
      main: takes the positional arguments, reads flags.
      positional: their names; a name that ends in "..." stands for one or more.
      interrupted: what someone who stops the program with Ctrl-C should know.
    """
    # A module of the user's own is found in the folder that the command is given in.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    # A file's name need not be UTF-8, and is printed all the same.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    compilation.use_cache()
    logging.set_verbosity(logging.ERROR)  # Orbax and XLA report every policy and backend they look at
    warnings.filterwarnings("default", message=r"config\.", category=DeprecationWarning)
    try:
        app.run(lambda argv: main(*_positional(argv, positional)), flags_parser=_parse)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(f"\ninterrupted; {interrupted}")


def define_config_flag(default: str):
    """The flag `--config=FILE[:NAME,NAME]`, and `--config.KEY=VALUE` for every key."""
    config_flags.DEFINE_config_file("config", default, "config file, and configs to mix in: base.py:lightweight,staged")
    flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS["config"])  # or --help leaves it out


def read_config(reference: ml_collections.ConfigDict, workdir: Path) -> ml_collections.ConfigDict:
    """The config that the flags give, finalized; with a torch file as `init_from`, its run's settings in it.

    Args:
      reference: the base config, whose keys are the allowed ones.
      workdir: of the run.

    Raises:
      ConfigError: unknown keys.
      CheckpointError: `init_from` cannot be read.
    """
    config = flags.FLAGS.config
    lines = warm_start.adopt_settings(config, {key for _, key in configuration.override_keys(sys.argv)}, workdir)
    if lines and jax.process_index() == 0:
        print("\n".join(lines), flush=True)
    return configuration.finalize(config, reference)


def config_name() -> str:
    """`tiny` for `--config=configs/tiny.py`, `base_lightweight` for `configs/base.py:lightweight`."""
    path, _, names = _config_argument(sys.argv).partition(":")
    return "_".join([Path(path).stem, *filter(None, names.split(","))])


def whole_numbers(flag: str, values: list[str] | None) -> tuple[int, ...] | None:
    """A list flag's values as numbers.

    Raises:
      ConfigError: one is none.
    """
    try:
        return None if values is None else tuple(int(value) for value in values)
    except ValueError:
        raise ConfigError(f"--{flag}={','.join(values)} must be whole numbers between commas") from None


def _positional(argv, names):
    given = argv[1:]
    open_ended = any(name.endswith("...") for name in names)
    if len(given) < len(names) or (len(given) > len(names) and not open_ended):
        takes = " ".join(names) or "no arguments but flags"
        raise ConfigError(f"{Path(argv[0]).name} takes {takes}; {len(given)} were given. --help lists the flags")
    return given


def _parse(argv):
    flags.FLAGS.set_gnu_getopt()  # flags may follow positional arguments
    if "config" not in flags.FLAGS:
        return app.parse_flags_with_usage(argv)
    path, _, names = _config_argument(argv).partition(":")
    module = configuration.load_module(path)
    try:
        config = module.get_config(*([names] if names else []))
    except ConfigError:
        raise
    except Exception as error:
        raise ConfigError(f"--config={path}: get_config failed: {type(error).__name__}: {error}") from error
    for i, key in list(configuration.override_keys(argv)):
        if key in configuration.LEGACY_KEYS:
            new = configuration.LEGACY_KEYS[key]
            configuration.warn_legacy_key(key, new)
            argv[i] = argv[i].replace(f"config.{key}", f"config.{new}", 1)
        elif not configuration.has_key(config, key):
            raise ConfigError(f"config has no key {key!r}{configuration.suggest_key(key, config)}")
    return app.parse_flags_with_usage(argv)


def _config_argument(argv):
    for i, argument in enumerate(argv):
        name, equals, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            return value if equals else argv[i + 1] if i + 1 < len(argv) else ""
    return flags.FLAGS["config"].default_unparsed or ""
