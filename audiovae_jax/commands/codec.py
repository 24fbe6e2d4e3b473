"""The commands `reconstruct`, `encode` and `decode`, and the flags of a codec."""

from collections.abc import Collection, Sequence
from pathlib import Path

from absl import flags

from audiovae_jax.commands import file_jobs
from audiovae_jax.commands.arguments import MODEL, Command
from audiovae_jax.data.audio import stream
from audiovae_jax.data.audio.audio_file import EXTENSIONS
from audiovae_jax.errors import ConfigError, printable
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


def _define(*, audio_in: bool = False, audio_out: bool = False, other_model: bool = False):
    define_codec_flags()
    flags.DEFINE_bool("overwrite", False, "replace existing outputs")
    if audio_in:
        flags.DEFINE_bool("mix", False, "mix channels down or up to the model's")
        flags.DEFINE_bool("allow_truncated", False, "use damaged files up to their damage")
    if audio_out:
        flags.DEFINE_enum("format", "wav", ["wav", "flac"], "output format: 32-bit float wav, or 24-bit flac")
        flags.DEFINE_enum(
            "peak", None, list(stream.PEAKS), "how to write audio above full scale: clip it, scale the whole file "
            "down (needs a temporary float copy in the output folder), or keep it (wav, aiff); by default wav and "
            "aiff keep it and other formats clip it",
        )  # fmt: skip
    if other_model:
        flags.DEFINE_bool("allow_other_model", False, "also decode latents of another model")


def _plan_audio(paths: Sequence[str], extensions: Collection[str]) -> list[file_jobs.Job]:
    """Plan the audio files to write for `IN... OUT`.

    The format is `--format`, or the suffix of OUT if OUT is a file.

    Raises:
      ConfigError: `--format` contradicts the suffix of OUT, or `--peak` the format.
      DataError: see `file_jobs.plan`.
    """
    flag = flags.FLAGS["format"]
    jobs = file_jobs.plan(
        paths[:-1], paths[-1], extensions=extensions, suffix=f".{flag.value}", file_suffixes=stream.SUFFIXES
    )
    if flag.present and jobs[0].target.suffix.lower() != f".{flag.value}":
        raise ConfigError(f"--format={flag.value} and {jobs[0].target} contradict each other; leave one out")
    if flags.FLAGS.peak == "keep":
        for job in jobs:
            if not stream.holds_floats(job.target):
                raise ConfigError(f"--peak=keep needs a format of floats: make {printable(job.target)} a .wav")
    return jobs


def _encode_flags():
    _define(audio_in=True)
    flags.DEFINE_integer(
        "seed", None, "sample the latents, seeded by this number and the file's name; default the means",
        lower_bound=0, upper_bound=2**32 - 1,
    )  # fmt: skip
    flags.DEFINE_enum("storage_dtype", "float32", list(latent_records.DTYPES), "dtype of the stored latents")


def _reconstruct(model, *paths):
    values = flags.FLAGS
    jobs = _plan_audio(paths, extensions=EXTENSIONS)
    _run(jobs, model, _warning_of(Codec.reconstruct_file), peak=values.peak, **_reading())


def _encode(model, *paths):
    jobs = file_jobs.plan(paths[:-1], paths[-1], extensions=EXTENSIONS, suffix=".safetensors")
    values = flags.FLAGS

    def encode(codec, source, target, progress):
        key = None
        if values.seed is not None:
            name = target.name if target == Path(paths[-1]) else target.relative_to(paths[-1]).as_posix()
            key = latent_writer.track_key(values.seed, name)
        codec.encode_file(source, target, progress, key=key, storage_dtype=values.storage_dtype, **_reading())

    _run(jobs, model, encode)


def _reading():
    """Return the options for reading audio."""
    return {"mix": flags.FLAGS.mix, "allow_truncated": flags.FLAGS.allow_truncated}


def _decode(model, *paths):
    jobs = _plan_audio(paths, extensions=(".safetensors",))
    values = flags.FLAGS
    method = _warning_of(Codec.decode_file)
    _run(jobs, model, method, allow_other_model=values.allow_other_model, peak=values.peak)


def _warning_of(method):
    """Return `method`, which writes audio, with a peak warning as its result."""

    def write(codec, source, target, *, peak, **options):
        level = method(codec, source, target, peak=peak, **options)
        is_kept = peak in (None, "keep") and stream.holds_floats(target)
        if level.peak <= 1 or is_kept:
            return None
        if peak == "scale":
            return f"its peak was {level}; the whole file was scaled down to full scale"
        is_lossy = peak is None and target.suffix.lower() != ".flac"
        return (
            f"its peak was {level}, which {'players clip' if is_lossy else 'were clipped'}; --peak=scale scales the "
            "whole file down, and a .wav keeps them"
        )

    return write


def _run(jobs, model, method, **options):
    codec = load(model)

    def process(source, target, progress):
        return method(codec, source, target, progress=progress, **options)

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
    define_flags=lambda: _define(audio_in=True, audio_out=True),
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
    define_flags=lambda: _define(audio_out=True, other_model=True),
)
