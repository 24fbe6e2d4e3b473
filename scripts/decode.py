"""Files of latents to audio files: `python scripts/decode.py --model=MODEL IN... OUT`.

IN are files, and folders whose structure is kept under OUT.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import cli, codec_flags, file_jobs

codec_flags.define()
codec_flags.define_jobs()
codec_flags.define_format()
_ALLOW = flags.DEFINE_bool("allow_other_model", False, "decode the latents of another model")


def main(*paths):
    jobs = codec_flags.plan_audio(paths, extensions=(".safetensors",))
    codec = codec_flags.load()

    def process(source, target, progress):
        codec.decode_file(source, target, allow_other_model=_ALLOW.value, progress=progress)

    file_jobs.run(jobs, process, overwrite=flags.FLAGS.overwrite)


if __name__ == "__main__":
    cli.run(main, positional=("IN...", "OUT"))
