"""Commands on one model: looked at, calibrated, made ready for serving, or made from torch's files and into them."""

import json
from pathlib import Path

from absl import flags

from audiovae_jax.commands import cli, codec
from audiovae_jax.commands.command import MODEL, Command
from audiovae_jax.inference import calibration, inspection, stablehlo
from audiovae_jax.persistence import conversion


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
    flags.DEFINE_bool("verify", False, "measure the spread afterwards, by encoding once more")
    flags.DEFINE_integer("sample_rate", None, "in Hz, where the model's file does not tell it", lower_bound=1)


def _calibrate(model, audio, target):
    values = flags.FLAGS
    calibration.calibrate(
        model, audio, target, limit=values.limit, verify=values.verify, sample_rate=values.sample_rate
    )


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
    dilations = cli.whole_numbers("dilations", flags.FLAGS.dilations)
    conversion.import_torch(model, target, dilations=dilations, strict=flags.FLAGS.strict)


def _export_torch(model, target):
    conversion.export_torch(model, target, step=flags.FLAGS.step)


INSPECT_MODEL = Command(
    name="inspect_model",
    description="""What a model file holds.

MODEL is a saved model, a workdir, or a torch, Lightning or safetensors file.""",
    main=_inspect,
    positional=(MODEL,),
    define_flags=_inspect_flags,
)
CALIBRATE_LATENTS = Command(
    name="calibrate_latents",
    description="""Set a model's latent statistics from audio, so that latents have zero mean and unit variance.

AUDIO is a folder of files, OUT a saved model to make (MODEL itself, if that is one).""",
    main=_calibrate,
    positional=(MODEL, "AUDIO", "OUT"),
    define_flags=_calibrate_flags,
)
EXPORT_STABLEHLO = Command(
    name="export_stablehlo",
    description="""Encoder and decoder for serving with JAX alone.

OUT is a folder to make, with two `jax.export` artifacts, weights inside, and a description.""",
    main=_export,
    positional=(MODEL, "OUT"),
    define_flags=_export_flags,
)
IMPORT_TORCH = Command(
    name="import_torch",
    description="""Make a saved model of a PyTorch file, and say what became of each tensor.

MODEL is a `save_model` file, a Lightning checkpoint, a bare state dict or safetensors; OUT the folder to make.
Nothing in MODEL is executed, and torch is not needed.""",
    main=_import,
    positional=(MODEL, "OUT"),
    define_flags=_import_flags,
)
EXPORT_TORCH = Command(
    name="export_torch",
    description="""Write a model for the PyTorch system, as OUT.pt or OUT.safetensors.

MODEL is a saved model, a training workdir, or a file that `import_torch` takes.""",
    main=_export_torch,
    positional=(MODEL, "OUT"),
    define_flags=codec.define_step,
)
