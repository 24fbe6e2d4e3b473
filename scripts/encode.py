"""Audio files to files of latents: `python scripts/encode.py --model=MODEL IN... OUT`.

IN are files, and folders whose structure is kept under OUT.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import cli, codec_flags, file_jobs
from audiovae_jax.data.audio_file import EXTENSIONS

codec_flags.define()
codec_flags.define_jobs()
codec_flags.define_mix()


def main(*paths):
    jobs = file_jobs.plan(paths[:-1], paths[-1], extensions=EXTENSIONS, suffix=".safetensors")
    codec = codec_flags.load()

    def process(source, target, progress):
        codec.encode_file(source, target, progress=progress, mix=flags.FLAGS.mix)

    file_jobs.run(jobs, process, overwrite=flags.FLAGS.overwrite)


if __name__ == "__main__":
    cli.run(main, positional=("IN...", "OUT"))
