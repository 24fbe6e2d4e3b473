"""The commands `reconstruct`, `encode` and `decode`, and the flags of a codec."""

from collections.abc import Collection, Sequence
from pathlib import Path

from absl import flags

from audiovae_jax.commands import file_jobs
from audiovae_jax.commands.arguments import MODEL, Command
from audiovae_jax.data.audio import stream
from audiovae_jax.data.audio.audio_file import EXTENSIONS
from audiovae_jax.errors import ConfigError
from audiovae_jax.inference import latent_records, latent_writer
from audiovae_jax.inference.codec import Codec


def define_codec_flags():
    """Define the flags for loading and running a codec."""
    define_step()
    flags.DEFINE_integer("sample_rate", None, "in Hz, if the model's file does not contain it", lower_bound=1)
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "dtype of the convolutions; default the model's")
    flags.DEFINE_integer(
        "chunk_length", None, "samples computed at once; the result does not depend on it", lower_bound=1
    )
    flags.DEFINE_integer(
        "batch_size", None, "windows computed at once; default 1 per device on CPU, 8 elsewhere", lower_bound=1
    )


def define_step():
    """Define `--step`."""
    flags.DEFINE_integer("step", None, "checkpoint of a workdir; default the best by validation loss")


def load(model: str) -> Codec:
    """Load the codec of a model with the options from the flags."""
    values = flags.FLAGS
    return Codec.load(
        model,
        step=values.step,
        sample_rate=values.sample_rate,
        dtype=values.dtype,
        chunk_length=values.chunk_length,
        batch_size=values.batch_size,
    )


def _define(*, mix: bool = False, audio_format: bool = False, other_model: bool = False):
    define_codec_flags()
    flags.DEFINE_bool("overwrite", False, "replace existing outputs")
    if mix:
        flags.DEFINE_bool("mix", False, "mix channels down or up to the model's")
    if audio_format:
        flags.DEFINE_enum("format", "wav", ["wav", "flac"], "output format: 32-bit float wav, or 24-bit flac")
    if other_model:
        flags.DEFINE_bool("allow_other_model", False, "also decode latents of another model")


def _plan_audio(paths: Sequence[str], extensions: Collection[str]) -> list[file_jobs.Job]:
    """Plan the audio files to write for `IN... OUT`.

    The format is `--format`, or the suffix of OUT if OUT is a file.

    Raises:
      ConfigError: `--format` contradicts the suffix of OUT.
      DataError: see `file_jobs.plan`.
    """
    flag = flags.FLAGS["format"]
    jobs = file_jobs.plan(
        paths[:-1], paths[-1], extensions=extensions, suffix=f".{flag.value}", file_suffixes=stream.SUFFIXES
    )
    if flag.present and jobs[0].target.suffix.lower() != f".{flag.value}":
        raise ConfigError(f"--format={flag.value} and {jobs[0].target} contradict each other; leave one out")
    return jobs


def _encode_flags():
    _define(mix=True)
    flags.DEFINE_integer(
        "seed", None, "sample the latents, seeded by this number and the file's name; default the means",
        lower_bound=0, upper_bound=2**32 - 1,
    )  # fmt: skip
    flags.DEFINE_enum("storage_dtype", "float32", list(latent_records.DTYPES), "dtype of the stored latents")


def _reconstruct(model, *paths):
    _run(_plan_audio(paths, extensions=EXTENSIONS), model, Codec.reconstruct_file, mix=flags.FLAGS.mix)


def _encode(model, *paths):
    jobs = file_jobs.plan(paths[:-1], paths[-1], extensions=EXTENSIONS, suffix=".safetensors")
    values = flags.FLAGS

    def encode(codec, source, target, progress):
        key = None
        if values.seed is not None:
            name = target.name if target == Path(paths[-1]) else target.relative_to(paths[-1]).as_posix()
            key = latent_writer.track_key(values.seed, name)
        codec.encode_file(source, target, progress, mix=values.mix, key=key, storage_dtype=values.storage_dtype)

    _run(jobs, model, encode)


def _decode(model, *paths):
    jobs = _plan_audio(paths, extensions=(".safetensors",))
    _run(jobs, model, Codec.decode_file, allow_other_model=flags.FLAGS.allow_other_model)


def _run(jobs, model, method, **options):
    codec = load(model)

    def process(source, target, progress):
        method(codec, source, target, progress=progress, **options)

    file_jobs.run(jobs, process, overwrite=flags.FLAGS.overwrite)


_FILES = (MODEL, "IN...", "OUT")
_DETAILS = """\
MODEL is a saved model, a workdir, or a torch, Lightning or safetensors file. IN are files or folders. OUT is a folder,
which gets the structure of the input folders. For a single input file, OUT can also be the output file. Existing
outputs are skipped."""
RECONSTRUCT = Command(
    name="reconstruct",
    details=f"{_DETAILS} Memory does not grow with the length of a file.",
    main=_reconstruct,
    positional=_FILES,
    define_flags=lambda: _define(mix=True, audio_format=True),
)
ENCODE = Command(
    name="encode",
    details=_DETAILS,
    main=_encode,
    positional=_FILES,
    define_flags=_encode_flags,
)
DECODE = Command(
    name="decode",
    details=_DETAILS,
    main=_decode,
    positional=_FILES,
    define_flags=lambda: _define(audio_format=True, other_model=True),
)
