"""`train` and `report`."""

from pathlib import Path

from absl import flags

from audiovae_jax.commands import bundled_configs, cli
from audiovae_jax.commands.command import Command
from audiovae_jax.data.files import printable
from audiovae_jax.errors import ConfigError, DataError
from audiovae_jax.run import huge_pages, train
from audiovae_jax.storage import atomic
from audiovae_jax.tracking import history, page


def _flags():
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "where the run lives; default runs/<config name>")


def _train():
    huge_pages.restart()
    workdir = Path(flags.FLAGS.workdir or Path("runs") / cli.config_name())
    train.train(cli.read_config(workdir), workdir)


TRAIN = Command(
    name="train",
    description="Train an audio VAE, or go on where a workdir stopped.",
    main=_train,
    define_flags=_flags,
)


def _report_flags():
    flags.DEFINE_string("out", None, "the page to make, .html; default report.html in the first workdir")
    flags.DEFINE_integer("sample_steps", 6, "of how many steps samples are in it, spread over the run", lower_bound=0)


def _report(*workdirs):
    runs = [history.read(Path(workdir)) for workdir in workdirs]
    path = Path(flags.FLAGS.out or runs[0].workdir / "report.html")
    if path.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out={printable(path)} must end in .html")
    try:
        atomic.require_writable(path)
        reference = bundled_configs.reference().to_dict()
        page.write(runs, reference, path, sample_steps=flags.FLAGS.sample_steps)
    except OSError as error:
        raise DataError(f"{printable(path)} was not written: {error.strerror or error}") from error
    for run in runs:
        told = page.warnings(run)
        print(f"{printable(run.workdir)}: step {run.last_step}, {len(told)} warnings")
        print("".join(f"  {printable(line)}\n" for line in told), end="")
    print(f"written to {printable(path)}")


REPORT = Command(
    name="report",
    description="""Make one HTML page of runs: curves, samples over time, warnings, what their configs differ in.

A WORKDIR may be of a run that is on. The page needs no server and no other file.""",
    main=_report,
    positional=("WORKDIR...",),
    define_flags=_report_flags,
    interrupted="no page was made",
)
