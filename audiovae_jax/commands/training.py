"""The commands `train`, `report` and `migrate_config`.

Each function imports what it runs. This reduces the time of `--help`, and of the restart of `train`, to a fifth.
"""

import sys
from pathlib import Path

import jax
from absl import flags

from audiovae_jax.commands import arguments, bundled_configs, process
from audiovae_jax.commands.arguments import Command
from audiovae_jax.distributed import background, launch, stopping
from audiovae_jax.errors import ConfigError, DataError, UserError, printable
from audiovae_jax.storage import atomic, server
from audiovae_jax.storage.bucket_path import BucketPath
from audiovae_jax.training import compilation


def define_process_flags():
    """Define the flags for multi-process runs."""
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0; not needed if the cluster is detected")
    flags.DEFINE_integer(
        "num_processes",
        None,
        "processes of the run, on all hosts; 1 without the other flags trains in this process only",
    )
    flags.DEFINE_integer("process_id", None, "index of this process, from 0")
    flags.DEFINE_float("initialization_timeout", 300, "seconds until all processes must have joined", 1)
    flags.DEFINE_float(
        "heartbeat_timeout",
        launch.HEARTBEAT_TIMEOUT,
        "seconds without a heartbeat of a process after which all processes end",
        1,
    )


def joined():
    """Return a context that joins the run's processes, see `launch.joined`.

    The settings come from the flags, or from the environment of the cluster that started this process.
    """
    given = flags.FLAGS
    return launch.joined(
        given.coordinator_address, given.num_processes, given.process_id,
        initialization_timeout=given.initialization_timeout, heartbeat_timeout=given.heartbeat_timeout,
        end=process.end,
    )  # fmt: skip


def use_cache_of(workdir: Path | BucketPath):
    """Cache the programs of a multi-process run next to its workdir.

    All processes find them there.
    """
    if jax.distributed.is_initialized():
        beside = workdir.absolute().parent if isinstance(workdir, Path) else workdir
        compilation.share_cache(beside / ".xla_cache")


def _flags():
    arguments.define_config_flag()
    flags.DEFINE_string("workdir", None, "folder of the run, local or s3:// or gs://; default runs/<config name>")
    flags.DEFINE_string("stop_after", None, "save and stop after this time, e.g. a queue's limit: 11h50m, 90s, 1d")
    flags.DEFINE_string(
        "profile_steps", None, "write a profile of these steps into the workdir: 100:105 for the five after step 100"
    )
    flags.DEFINE_integer(
        "profiler_port", None, "port of JAX's profiler server on this machine; process I uses this port + I", 1, 65535
    )
    define_process_flags()


def _train():
    process.show_stacks_on_signal()
    from audiovae_jax.performance.planning import accelerators
    from audiovae_jax.run import bucket_lock, train, warm_start
    from audiovae_jax.run.tracking import trace

    given = flags.FLAGS
    workdir = bucket_lock.as_workdir(given.workdir or Path("runs") / arguments.config_name())
    stop_after = None if given.stop_after is None else stopping.seconds(given.stop_after)
    profile_steps = None if given.profile_steps is None else trace.steps_of(given.profile_steps)
    reader = warm_start.TorchReader()
    try:
        with joined():
            config = arguments.read_config(workdir, reader)
            process.limit_nccl(2 * config.stuck_timeout)  # so that the run's own message comes first
            use_cache_of(workdir)
            if jax.process_index() == 0:
                compilation.mend_cache()
            if given.profiler_port is not None:
                trace.serve(given.profiler_port + jax.process_index())
            train.train(
                config, workdir, stop_after=stop_after, heartbeat_timeout=given.heartbeat_timeout, reader=reader,
                peak_flops=accelerators.peak_flops_of(jax.devices()[0], config.model.dtype),
                profile_steps=profile_steps,
            )  # fmt: skip
    except UserError as error:
        text = f"error: {error}"
        background.leave(1, lambda: print(text, file=sys.stderr))
        raise
    background.leave(0)


TRAIN = Command(
    name="train",
    main=_train,
    define_flags=_flags,
)


def _report_flags():
    flags.DEFINE_string("out", None, ".html file to write; default report.html in the first workdir")
    flags.DEFINE_integer(
        "sample_steps", 6, "number of steps whose samples are shown, spread over the run", lower_bound=0
    )


def _report(*workdirs):
    from audiovae_jax.run.tracking import history, page, sessions

    if any(server.is_url(workdir) for workdir in workdirs):
        raise ConfigError(f"for a run in a bucket, copy {history.NEEDED} to a folder and give that folder")
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
        warnings = page.warnings(run)
        print(f"{printable(run.workdir)}: step {run.last_step}, {len(warnings)} warnings")
        print("".join(f"  {printable(line)}\n" for line in warnings), end="")
        if run.sessions:
            print(f"  {sessions.summary(run.sessions)}")
    print(f"written to {printable(path)}")


REPORT = Command(
    name="report",
    details="A WORKDIR may belong to a run in progress. The page needs no server and no other files.",
    main=_report,
    positional=("WORKDIR...",),
    define_flags=_report_flags,
    interrupted="no page was written",
)


def _migrate_flags():
    flags.DEFINE_string("out", None, "config file to write; by default the config is only printed", short_name="o")
    flags.DEFINE_bool("overwrite", False, "replace existing outputs")


def _migrate(*given):
    from audiovae_jax.torch_io.migration import migrate

    output = flags.FLAGS.out
    if output is not None and not output.endswith(".py"):
        raise ConfigError(f"--out={output} must end in .py")
    if output is not None and Path(output).exists() and not flags.FLAGS.overwrite:
        raise ConfigError(f"{printable(output)} exists; give --overwrite to replace it")
    overrides = [name for name in given if ("=" in name or name.startswith("~")) and not Path(name).is_file()]
    if given[0] in overrides:
        raise ConfigError("give the old config as the first argument, for example configs/train.yaml, then KEY=VALUE")
    files = [Path(name) for name in given if name not in overrides]
    reference = bundled_configs.reference()
    made = migrate.migrate(files, overrides, reference)
    for title, lines in (
        ("read", [printable(file) for file in made.files]),
        ("differs from configs/base.py", made.statements),
        ("converted, with another meaning", made.changed),
        ("no counterpart", made.dropped),
    ):
        print(f"{title}: {len(lines)}" + "".join(f"\n  {line}" for line in lines))
    if output is not None:
        migrate.write(made, Path(output), reference)
        print(f"written to {printable(output)}: scripts/train.py --config={printable(output)}")


MIGRATE_CONFIG = Command(
    name="migrate_config",
    details="""\
OLD is the main config. Its folder contains the groups that its defaults name. Other files of the tree may follow, to
be chosen for their groups, and KEY=VALUE as on Hydra's command line. Nothing in the files is executed. Keys without a
counterpart are listed.""",
    main=_migrate,
    positional=("OLD...",),
    define_flags=_migrate_flags,
)
