"""Encoder and decoder for serving with JAX alone: `python scripts/export_stablehlo.py MODEL OUT`.

OUT is a folder to make, with two `jax.export` artifacts, weights inside, and a description.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import cli, codec_flags
from audiovae_jax.inference import stablehlo

codec_flags.define(model_flag=False)
_PLATFORMS = flags.DEFINE_list("platforms", list(stablehlo.PLATFORMS), "to lower for")


def main(model, target):
    manifest = stablehlo.export_stablehlo(codec_flags.load(model), target, tuple(_PLATFORMS.value))
    for name in ("encoder", "decoder"):
        size = (Path(target) / manifest[name]["file"]).stat().st_size
        print(f"{name}: {manifest[name]['in']} -> {manifest[name]['out']}, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    cli.run(main, positional=("MODEL", "OUT"))
