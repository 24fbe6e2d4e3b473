"""Audio files to files of latents: `python scripts/encode.py --model=MODEL IN... OUT`.

IN are files, and folders whose structure is kept under OUT.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax import cli, file_jobs
from audiovae_jax.codec import Codec
from audiovae_jax.data.audio_file import EXTENSIONS

_MODEL = flags.DEFINE_string("model", None, "a saved model, a workdir, or a torch file", required=True)
_STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoint; by default the best by validation loss")
_SAMPLE_RATE = flags.DEFINE_integer("sample_rate", None, "in Hz, where the model's file does not tell it")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "what to compute in; by default the model's")
_CHUNK = flags.DEFINE_integer("chunk_length", None, "samples computed at once; the result does not depend on it")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "make what is there already, too")
_MIX = flags.DEFINE_bool("mix", False, "mix channels down or up to the model's")


def main(*paths):
    jobs = file_jobs.plan(paths[:-1], paths[-1], extensions=EXTENSIONS, suffix=".safetensors")
    codec = Codec.load(
        _MODEL.value, step=_STEP.value, sample_rate=_SAMPLE_RATE.value, dtype=_DTYPE.value, chunk_length=_CHUNK.value
    )

    def process(source, target, progress):
        codec.encode_file(source, target, progress=progress, mix=_MIX.value)

    file_jobs.run(jobs, process, overwrite=_OVERWRITE.value)


if __name__ == "__main__":
    cli.run(main, positional=("IN...", "OUT"))
