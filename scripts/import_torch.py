"""Make a saved model of a PyTorch file: `python scripts/import_torch.py IN OUT`.

IN is a `save_model` file, a Lightning checkpoint, a bare state dict or safetensors; OUT the folder to
make. Nothing in IN is executed, and torch is not needed.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import cli
from audiovae_jax.persistence import conversion

_DILATIONS = flags.DEFINE_list("dilations", None, "of the residual units, where IN has no model_config: 1,3,9")
_STRICT = flags.DEFINE_bool("strict", True, "--nostrict takes what fits and names what does not")


def main(source, target):
    dilations = cli.whole_numbers("dilations", _DILATIONS.value)
    conversion.import_torch(source, target, dilations=dilations, strict=_STRICT.value)


if __name__ == "__main__":
    cli.run(main, positional=("IN", "OUT"))
