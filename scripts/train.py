"""Train an audio VAE: `python scripts/train.py --config=configs/base.py [--workdir=DIR] [--config.KEY=VALUE]`."""

import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import cli
from audiovae_jax.run import huge_pages, train
from configs import base

cli.define_config_flag("configs/base.py")
_WORKDIR = flags.DEFINE_string("workdir", None, "where the run lives; default runs/<config name>")


def main():
    huge_pages.restart()
    workdir = Path(_WORKDIR.value or Path("runs") / cli.config_name())
    train.train(cli.read_config(base.get_config(), workdir), workdir)


if __name__ == "__main__":
    cli.run(main)
