"""`convert_musdb18`."""

import os
from pathlib import Path

from absl import flags

from audiovae_jax.commands.command import Command
from audiovae_jax.datasets import musdb18_stems


def _flags():
    flags.DEFINE_integer("num_workers", min(4, os.cpu_count() or 1), "songs that are converted at once", lower_bound=1)


def _convert(root, out):
    musdb18_stems.convert(Path(root), Path(out), num_workers=flags.FLAGS.num_workers)


CONVERT_MUSDB18 = Command(
    name="convert_musdb18",
    description="""Convert MUSDB18 (.stem.mp4) to the layout of MUSDB18-HQ, once; needs ffmpeg.

ROOT holds train/ and test/ as they are shared; OUT gets a folder of five wav files for each song.""",
    main=_convert,
    positional=("ROOT", "OUT"),
    define_flags=_flags,
    interrupted="songs that were made are whole, and the same command goes on from there",
)
