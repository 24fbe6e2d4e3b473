"""Audio files through a model and back: `python scripts/reconstruct.py --model=MODEL IN... OUT`.

IN are files, and folders whose structure is kept under OUT. Any length takes the same memory.
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
codec_flags.define_format()


def main(*paths):
    jobs = codec_flags.plan_audio(paths, extensions=EXTENSIONS)
    codec = codec_flags.load()

    def process(source, target, progress):
        codec.reconstruct_file(source, target, mix=flags.FLAGS.mix, progress=progress)

    file_jobs.run(jobs, process, overwrite=flags.FLAGS.overwrite)


if __name__ == "__main__":
    cli.run(main, positional=("IN...", "OUT"))
