"""`check_data`."""

import dataclasses
import json
from pathlib import Path

from absl import flags

from audiovae_jax.commands import cli
from audiovae_jax.commands.command import Command
from audiovae_jax.config import configuration
from audiovae_jax.data.files import printable
from audiovae_jax.errors import ConfigError, DataError
from audiovae_jax.feeding import pipeline
from audiovae_jax.run import bucket_lock
from audiovae_jax.storage import atomic
from audiovae_jax.survey import page, survey, text


def _flags():
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "of the run that is planned; default runs/<config name>, as train has it")
    flags.DEFINE_integer("limit", 500, "listen to no more tracks than this, spread evenly over all", lower_bound=1)
    flags.DEFINE_float("seconds", 5.0, "to measure how fast crops are read; 0 leaves it out", 0, 3600)
    flags.DEFINE_string("json", None, "file for the report as JSON")
    flags.DEFINE_string("page", None, "file for the report as a page of plots: .html, with tables, or .png")


def _check(root=None):
    values = flags.FLAGS
    _require_writable(values.json, values.page)
    if root is not None:
        values.config.data.root = root
    workdir = bucket_lock.as_workdir(values.workdir or Path("runs") / cli.config_name())
    config = cli.read_config(workdir)
    configuration.check(config, device_count=1)
    if config.data.root is None and not config.data.mix:
        raise ConfigError("there is nothing to look at: give a folder, a manifest or a URL, as check_data ROOT")
    data = pipeline.open_data(
        config.data, batch_size=config.batch_size, seed=config.seed, leave_out=(workdir / "samples",)
    )
    found = survey.look(
        config.data,
        data,
        root=config.data.root or "; ".join(name for name, _ in config.data.mix),
        batch_size=config.batch_size,
        limit=values.limit,
        seconds=values.seconds,
    )
    print("\n".join(text.lines(found)), flush=True)
    try:
        if values.json is not None:
            with atomic.replacing(Path(values.json)) as temporary:
                temporary.write_text(json.dumps(_plain(dataclasses.asdict(found)), indent=2) + "\n")
        if values.page is not None:
            page.write(found, Path(values.page))
    except OSError as error:
        raise DataError(f"the report was not written: {error.strerror or error}") from error
    if found.refusal is not None:
        raise DataError(f"training would refuse: {found.refusal}")


def _require_writable(*paths):
    """Before the work, not after it."""
    if paths[1] is not None and not paths[1].lower().endswith(page.SUFFIXES):
        raise ConfigError(f"--page={paths[1]} must end in {' or '.join(page.SUFFIXES)}")
    for path in filter(None, paths):
        try:
            atomic.require_writable(path)
        except OSError as error:
            raise ConfigError(f"{printable(path)} cannot be written: {error.strerror or error}") from error


def _plain(value):
    """With text that is UTF-8, whatever the names of files."""
    if isinstance(value, dict):
        return {_plain(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return printable(value) if isinstance(value, str) else value


CHECK_DATA = Command(
    name="check_data",
    description="""Look at a data set before a run: what it is like, what is skipped, how fast it is read.

ROOT takes the place of config.data.root. The status is 1 where training would refuse.""",
    main=_check,
    positional=("[ROOT]",),
    define_flags=_flags,
    interrupted="no report was made",
)
