"""The command `serve`, as `python -m audiovae_jax serve` runs it too."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import cli

if __name__ == "__main__":
    cli.main("serve")
