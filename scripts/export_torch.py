"""Write a model for the PyTorch system: `python scripts/export_torch.py IN OUT.pt` (or `OUT.safetensors`).

IN is a saved model, a training workdir, or a file that `import_torch.py` takes.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import cli
from audiovae_jax.persistence import conversion

_STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoint; by default the best by validation loss")


def main(source, target):
    conversion.export_torch(source, target, step=_STEP.value)


if __name__ == "__main__":
    cli.run(main, positional=("IN", "OUT"))
