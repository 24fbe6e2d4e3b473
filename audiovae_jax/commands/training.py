"""`train`."""

from pathlib import Path

from absl import flags

from audiovae_jax.commands import cli
from audiovae_jax.commands.command import Command
from audiovae_jax.distributed import launch, stopping
from audiovae_jax.run import bucket_lock, huge_pages, train


def define_process_flags():
    """The flags of a process that is one of several."""
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0; the cluster tells where it can")
    flags.DEFINE_integer("num_processes", None, "of the run, on all hosts; 1 alone trains in this process alone")
    flags.DEFINE_integer("process_id", None, "of this process, from 0")
    flags.DEFINE_float("initialization_timeout", 300, "seconds that all processes have to come", 1)
    flags.DEFINE_float("heartbeat_timeout", launch.HEARTBEAT_TIMEOUT, "seconds of silence that end all processes", 1)


def joined():
    """Joins the run's processes as the flags, or what started this one, say: a context, see `launch.joined`."""
    given = flags.FLAGS
    return launch.joined(
        given.coordinator_address, given.num_processes, given.process_id,
        initialization_timeout=given.initialization_timeout, heartbeat_timeout=given.heartbeat_timeout,
    )  # fmt: skip


def _flags():
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "where the run lives, a folder or s3:// or gs://; default runs/<config name>")
    flags.DEFINE_string("stop_after", None, "save and end after this time, for a queue's limit: 11h50m, 90s, 1d")
    define_process_flags()


def _train():
    huge_pages.restart()
    given = flags.FLAGS
    workdir = bucket_lock.as_workdir(given.workdir or Path("runs") / cli.config_name())
    stop_after = None if given.stop_after is None else stopping.seconds(given.stop_after)
    with joined():
        train.train(cli.read_config(workdir), workdir, stop_after=stop_after, heartbeat_timeout=given.heartbeat_timeout)


TRAIN = Command(
    name="train",
    description="Train an audio VAE, or go on where a workdir stopped.",
    main=_train,
    define_flags=_flags,
)
