"""What a model file holds: `python scripts/inspect_model.py MODEL`.

MODEL is a saved model, a workdir, or a torch, Lightning or safetensors file.
"""

import json
import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import cli
from audiovae_jax.inference import inspection

_STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoint; by default the best by validation loss")
_JSON = flags.DEFINE_bool("json", False, "print JSON")


def main(path):
    description = inspection.inspect_model(path, step=_STEP.value)
    if _JSON.value:
        print(json.dumps(description, indent=2))
    else:
        inspection.print_description(description)


if __name__ == "__main__":
    cli.run(main, positional=("MODEL",))
