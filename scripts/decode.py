"""Files of latents to audio files: `python scripts/decode.py --model=MODEL IN... OUT`.

IN are files, and folders whose structure is kept under OUT.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax import cli, file_jobs
from audiovae_jax.codec import Codec

_MODEL = flags.DEFINE_string("model", None, "a saved model, a workdir, or a torch file", required=True)
_STEP = flags.DEFINE_integer("step", None, "of a workdir's checkpoint; by default the best by validation loss")
_SAMPLE_RATE = flags.DEFINE_integer("sample_rate", None, "in Hz, where the model's file does not tell it")
_DTYPE = flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "what to compute in; by default the model's")
_CHUNK = flags.DEFINE_integer("chunk_length", None, "samples computed at once; the result does not depend on it")
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "make what is there already, too")
_FORMAT = flags.DEFINE_enum("format", "wav", ["wav", "flac"], "of the audio: 32-bit float wav, or 24-bit flac")
_ALLOW = flags.DEFINE_bool("allow_other_model", False, "decode the latents of another model")


def main(*paths):
    jobs = file_jobs.plan(paths[:-1], paths[-1], extensions=(".safetensors",), suffix=f".{_FORMAT.value}")
    codec = Codec.load(
        _MODEL.value, step=_STEP.value, sample_rate=_SAMPLE_RATE.value, dtype=_DTYPE.value, chunk_length=_CHUNK.value
    )

    def process(source, target, progress):
        codec.decode_file(source, target, allow_other_model=_ALLOW.value, progress=progress)

    file_jobs.run(jobs, process, overwrite=_OVERWRITE.value)


if __name__ == "__main__":
    cli.run(main, positional=("IN...", "OUT"))
