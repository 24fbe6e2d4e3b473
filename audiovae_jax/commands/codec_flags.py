"""The flags that the codec's scripts share, and the codec that they ask for."""

from collections.abc import Collection, Sequence

from absl import flags

from audiovae_jax.commands import file_jobs
from audiovae_jax.data import stream
from audiovae_jax.errors import ConfigError
from audiovae_jax.inference.codec import Codec


def define(model_flag: bool = True):
    """Define `--model` (required), or leave the model to the script, and how the codec computes."""
    if model_flag:
        flags.DEFINE_string("model", None, "a saved model, a workdir, or a torch file", required=True)
    flags.DEFINE_integer("step", None, "of a workdir's checkpoint; by default the best by validation loss")
    flags.DEFINE_integer("sample_rate", None, "in Hz, where the model's file does not tell it", lower_bound=1)
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "what to compute in; by default the model's")
    flags.DEFINE_integer(
        "chunk_length", None, "samples computed at once; the result does not depend on it", lower_bound=1
    )


def define_jobs():
    """Define `--overwrite`."""
    flags.DEFINE_bool("overwrite", False, "make what is there already, too")


def define_mix():
    """Define `--mix`."""
    flags.DEFINE_bool("mix", False, "mix channels down or up to the model's")


def define_format():
    """Define `--format` of audio to write."""
    flags.DEFINE_enum("format", "wav", ["wav", "flac"], "of the audio: 32-bit float wav, or 24-bit flac")


def plan_audio(paths: Sequence[str], extensions: Collection[str]) -> list[file_jobs.Job]:
    """The audio files to make of `IN... OUT`, in the format of `--format`, or of a single file's name.

    Raises:
      ConfigError: the two contradict each other.
      DataError: see `file_jobs.plan`.
    """
    flag = flags.FLAGS["format"]
    jobs = file_jobs.plan(
        paths[:-1], paths[-1], extensions=extensions, suffix=f".{flag.value}", file_suffixes=stream.SUFFIXES
    )
    if flag.present and jobs[0].target.suffix.lower() != f".{flag.value}":
        raise ConfigError(f"--format={flag.value} and {jobs[0].target} contradict each other; leave one out")
    return jobs


def load(model: str | None = None) -> Codec:
    """The codec of `--model`, or of `model`."""
    values = flags.FLAGS
    return Codec.load(
        model or values.model,
        step=values.step,
        sample_rate=values.sample_rate,
        dtype=values.dtype,
        chunk_length=values.chunk_length,
    )
