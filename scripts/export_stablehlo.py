"""Encoder and decoder for serving with JAX alone: `python scripts/export_stablehlo.py MODEL OUT`.

OUT is a folder to make, with two `jax.export` artifacts, weights inside, and a description.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax import cli, stablehlo
from audiovae_jax.codec import Codec

_STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoint; by default the best by validation loss")
_SAMPLE_RATE = flags.DEFINE_integer("sample_rate", None, "in Hz, where the model's file does not tell it")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "what to compute in; by default the model's")
_PLATFORMS = flags.DEFINE_list("platforms", list(stablehlo.PLATFORMS), "to lower for")


def main(model, target):
    codec = Codec.load(model, step=_STEP.value, sample_rate=_SAMPLE_RATE.value, dtype=_DTYPE.value)
    manifest = stablehlo.export_stablehlo(codec, target, tuple(_PLATFORMS.value))
    for name in ("encoder", "decoder"):
        size = (Path(target) / manifest[name]["file"]).stat().st_size
        print(f"{name}: {manifest[name]['in']} -> {manifest[name]['out']}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main, positional=("MODEL", "OUT"))
