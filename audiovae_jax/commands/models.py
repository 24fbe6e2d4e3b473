"""Commands on one model: inspect, calibrate, export, convert from and to torch."""

import functools
import json
from pathlib import Path

import numpy as np
import tqdm
from absl import flags

from audiovae_jax.commands import arguments, codec
from audiovae_jax.commands.arguments import MODEL, Command
from audiovae_jax.errors import printable
from audiovae_jax.inference import calibration, inspection, stablehlo
from audiovae_jax.persistence import conversion

_MOST_NAMED = 10  # file names per line


def _inspect_flags():
    codec.define_step()
    flags.DEFINE_bool("json", False, "print JSON")


def _inspect(model):
    description = inspection.inspect_model(model, step=flags.FLAGS.step)
    if flags.FLAGS.json:
        print(json.dumps(description, indent=2))
    else:
        inspection.print_description(description)


def _calibrate_flags():
    flags.DEFINE_integer("limit", None, "use no more files than this", lower_bound=1)
    flags.DEFINE_bool("verify", False, "measure the written model, on a tenth of the files that is held out for it")
    flags.DEFINE_integer("sample_rate", None, "in Hz, where the model's file does not tell it", lower_bound=1)


def _calibrate(model, audio, target):
    values = flags.FLAGS
    made = calibration.calibrate(
        model,
        audio,
        target,
        limit=values.limit,
        verify=values.verify,
        progress=functools.partial(tqdm.tqdm, unit="file", dynamic_ncols=True),
        sample_rate=values.sample_rate,
    )
    print("\n".join(_calibration_lines(made)))
    print(f"written to {target}")


def _calibration_lines(made):
    measured = {"before": made.before} if made.after is None else {"before": made.before, "after": made.after}
    for reason in dict.fromkeys(reason for spread in measured.values() for reason in spread.skipped):
        yield f"skipped {reason}"
    read = made.before
    yield f"calibrated on {len(read.files)} files, {read.frames:,} latent frames of {made.hop_length} samples"
    if made.held_out:
        names = [printable(path) for path in made.after.files]
        more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
        yield f"measured afterwards on {len(names)} other files: {', '.join(names[:_MOST_NAMED])}{more}"
    elif made.after is not None:
        yield "measured afterwards on the same files, which are too few to hold some out"
    yield "channel  " + "  ".join(f"mean {when}  variance {when}" for when in measured)
    for channel in range(len(made.before.mean)):
        cells = (
            f"{spread.mean[channel]:{len('mean ' + when)}.4f}  {spread.std[channel] ** 2:{len('variance ' + when)}.4f}"
            for when, spread in measured.items()
        )
        yield f"{channel:7d}  " + "  ".join(cells)
    for when, spread in measured.items():
        mean, variance = np.abs(spread.mean).max(), spread.std**2
        yield f"{when}: |mean| at most {mean:.4f}, variance {variance.min():.4f} to {variance.max():.4f}"


def _export_flags():
    codec.define_codec_flags()
    flags.DEFINE_list("platforms", list(stablehlo.PLATFORMS), "to lower for")


def _export(model, target):
    manifest = stablehlo.export_stablehlo(codec.load(model), target, tuple(flags.FLAGS.platforms))
    for name in ("encoder", "decoder"):
        size = (Path(target) / manifest[name]["file"]).stat().st_size
        print(f"{name}: {manifest[name]['in']} -> {manifest[name]['out']}, {size / 1e6:.1f} MB")


def _import_flags():
    flags.DEFINE_list("dilations", None, "of the residual units, where MODEL has no model_config: 1,3,9")
    flags.DEFINE_bool("strict", True, "--nostrict takes what fits and names what does not")


def _import(model, target):
    dilations = arguments.whole_numbers("dilations", flags.FLAGS.dilations)
    conversion.import_torch(model, target, dilations=dilations, strict=flags.FLAGS.strict)


def _export_torch(model, target):
    conversion.export_torch(model, target, step=flags.FLAGS.step)


INSPECT_MODEL = Command(
    name="inspect_model",
    details="MODEL is a saved model, a workdir, or a torch, Lightning or safetensors file.",
    main=_inspect,
    positional=(MODEL,),
    define_flags=_inspect_flags,
)
CALIBRATE_LATENTS = Command(
    name="calibrate_latents",
    details="""\
IN is an audio file, or a folder of them. OUT is the saved model to make, here or in a bucket; it may be MODEL.""",
    main=_calibrate,
    positional=(MODEL, "IN", "OUT"),
    bucket_output=True,
    define_flags=_calibrate_flags,
)
EXPORT_STABLEHLO = Command(
    name="export_stablehlo",
    details="OUT is a folder to make, with two `jax.export` artifacts, weights inside, and a description.",
    main=_export,
    positional=(MODEL, "OUT"),
    define_flags=_export_flags,
)
IMPORT_TORCH = Command(
    name="import_torch",
    details="""\
MODEL is a `save_model` file, a Lightning checkpoint, a bare state dict or safetensors; OUT the folder to make, here or
in a bucket. Nothing in MODEL is executed, and torch is not needed.""",
    main=_import,
    positional=(MODEL, "OUT"),
    bucket_output=True,
    define_flags=_import_flags,
)
EXPORT_TORCH = Command(
    name="export_torch",
    details="""\
MODEL is a saved model, a training workdir, or a file that `import_torch` takes. OUT ends in .pt or
.safetensors.""",
    main=_export_torch,
    positional=(MODEL, "OUT"),
    define_flags=codec.define_step,
)
