"""`train`."""

from pathlib import Path

from absl import flags

from audiovae_jax.commands import cli
from audiovae_jax.commands.command import Command
from audiovae_jax.run import bucket_lock, huge_pages, train


def _flags():
    cli.define_config_flag()
    flags.DEFINE_string("workdir", None, "where the run lives, a folder or s3:// or gs://; default runs/<config name>")


def _train():
    huge_pages.restart()
    workdir = bucket_lock.as_workdir(flags.FLAGS.workdir or Path("runs") / cli.config_name())
    train.train(cli.read_config(workdir), workdir)


TRAIN = Command(
    name="train",
    description="Train an audio VAE, or go on where a workdir stopped.",
    main=_train,
    define_flags=_flags,
)
