"""Set a model's latent statistics from audio: `python scripts/calibrate_latents.py MODEL AUDIO OUT`.

MODEL is whatever the other scripts take, AUDIO a folder of files, OUT a saved model to make (MODEL
itself, if that is one). Encoded audio then has zero mean and unit variance per latent channel.
"""

import sys
from pathlib import Path

from absl import flags

sys.path.append(str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import cli
from audiovae_jax.inference import calibration

_LIMIT = flags.DEFINE_integer("limit", None, "use no more files than this")
_VERIFY = flags.DEFINE_bool("verify", False, "measure the spread afterwards, by encoding once more")
_SAMPLE_RATE = flags.DEFINE_integer("sample_rate", None, "in Hz, where the model's file does not tell it")


def main(model, audio, target):
    calibration.calibrate(
        model, audio, target, limit=_LIMIT.value, verify=_VERIFY.value, sample_rate=_SAMPLE_RATE.value
    )


if __name__ == "__main__":
    cli.run(main, positional=("MODEL", "AUDIO", "OUT"))
