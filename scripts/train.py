"""The command `train`, as `audiovae-jax train` runs it too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import cli

if __name__ == "__main__":
    cli.main("train")
