"""Commands on one model: inspect, calibrate, average, export, convert."""

import functools
import json
from pathlib import Path

import numpy as np
import tqdm
from absl import flags

from audiovae_jax.commands import arguments, codec
from audiovae_jax.commands.arguments import MODEL, Command
from audiovae_jax.errors import ConfigError, printable
from audiovae_jax.inference import calibration, inspection, stablehlo
from audiovae_jax.persistence import averaging, conversion, publication
from audiovae_jax.torch_io import audio_vae, export

_NAMES_PER_LINE = 10  # file names per line


def _inspect_flags():
    codec.define_step()
    flags.DEFINE_bool("json", False, "print JSON")


def _inspect(model):
    description = inspection.inspect_model(model, step=flags.FLAGS.step)
    if flags.FLAGS.json:
        print(json.dumps(description, indent=2))
    else:
        print("\n".join(_description_lines(description)))


def _description_lines(description):
    width = max(map(len, description))
    for name, value in description.items():
        if name == "layers":
            yield from _layer_lines(value)
            continue
        if value in (None, {}, []):
            value = "unknown" if value is None else "none"
        elif isinstance(value, dict):
            value = ", ".join(f"{key}={item}" for key, item in value.items())
        elif isinstance(value, list):
            value = "; ".join(map(str, value))
        elif isinstance(value, int) and not isinstance(value, bool):
            value = f"{value:,}"
        elif isinstance(value, float):
            value = f"{value:,.4g}"
        yield f"{name.ljust(width)}  {value}"


def _layer_lines(layers):
    """A table with a line per layer."""
    rows = [list(layers[0]), *([_cell(value) for value in layer.values()] for layer in layers)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        yield "  ".join([name.ljust(widths[0]), *map(str.rjust, cells, widths[1:])])


def _cell(value):
    return "unknown" if value is None else value if isinstance(value, str) else f"{value:,.7g}"


def _calibrate_flags():
    flags.DEFINE_integer("limit", None, "maximum number of files to use", lower_bound=1)
    flags.DEFINE_bool("verify", False, "hold out a tenth of the files, and measure the written model on them")
    flags.DEFINE_integer("sample_rate", None, "in Hz, if the model's file does not contain it", lower_bound=1)


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
        more = f" and {len(names) - _NAMES_PER_LINE} more" if len(names) > _NAMES_PER_LINE else ""
        yield f"measured afterwards on {len(names)} other files: {', '.join(names[:_NAMES_PER_LINE])}{more}"
    elif made.after is not None:
        yield "measured afterwards on the same files, since there are too few to hold some out"
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


def _average_flags():
    flags.DEFINE_integer("last", None, "number of the newest checkpoints to average; default 3", lower_bound=2)
    flags.DEFINE_list("steps", None, "steps of the checkpoints to average, instead of --last")


def _average(workdir, target):
    values = flags.FLAGS
    if values.last is not None and values.steps is not None:
        raise ConfigError("--last and --steps are both given; leave one out")
    given = {} if values.last is None else {"last": values.last}
    steps = arguments.whole_numbers("steps", values.steps)
    steps = averaging.average_checkpoints(workdir, target, steps=steps, **given)
    print(f"the mean of checkpoints {', '.join(map(str, steps))} is written to {target}")


def _export_flags():
    codec.define_codec_flags()
    flags.DEFINE_list("platforms", list(stablehlo.PLATFORMS), "platforms to export for")


def _export(model, target):
    manifest = stablehlo.export_stablehlo(codec.load(model), target, tuple(flags.FLAGS.platforms))
    for name in ("encoder", "decoder"):
        size = (Path(target) / manifest[name]["file"]).stat().st_size
        print(f"{name}: {manifest[name]['in']} -> {manifest[name]['out']}, {size / 1e6:.1f} MB")


def _import_flags():
    flags.DEFINE_list("dilations", None, "dilations of the residual units, if MODEL has no model_config; default 1,3,9")
    flags.DEFINE_string("model_config", None, "config of another project, if it is not beside MODEL")
    flags.DEFINE_bool("strict", True, "--nostrict imports the tensors that fit, and lists the others")


def _import(model, target):
    dilations = arguments.whole_numbers("dilations", flags.FLAGS.dilations)
    options = {"strict": flags.FLAGS.strict, "model_config": flags.FLAGS.model_config}
    made = conversion.import_torch(model, target, dilations=dilations, **options)
    print("\n".join(_table(made.lines)))
    print(f"config: {audio_vae.spell_config(made.model)}")
    for note in made.notes:
        print(f"note: {note}")
    if made.has_optimizer:
        print("note: a saved model does not keep optimizer states; train reads them from the file itself,")
        print(f"      with --config.init_from={model}")
    print(
        f"round trip: {made.compared} tensors of the model exported again from {target}, "
        f"largest difference {made.largest_difference:.3g}"
    )


def _table(lines):
    rows = [("tensor", "type", "imported as", "")]
    for line in lines:
        note = line.note if line.became else f"ignored: {line.note}"
        rows.append((line.key, f"{line.dtype}{list(line.shape)}", line.became or "-", note))
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    for *cells, note in rows:
        yield "  ".join([*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), note]).rstrip()
    taken = sum(line.became is not None for line in lines)
    yield f"{taken} tensors imported, {len(lines) - taken} ignored"


def _export_torch_flags():
    codec.define_step()
    flags.DEFINE_enum(
        "project", None, list(export.PROJECTS), "other project to export for; OUT is a folder for diffusers"
    )


def _export_torch(model, target):
    made = conversion.export_torch(model, target, step=flags.FLAGS.step, project=flags.FLAGS.project)
    for note in made.notes:
        print(f"note: {note}")
    print(f"{target}: {made.tensors} tensors, {made.parameters:,} parameters with latent statistics")
    print(f"config: {audio_vae.spell_config(made.model)}")
    if made.optimizer_step is not None:
        print(f"with the optimizer's state after step {made.optimizer_step}, for torch.optim.AdamW")
    if made.left_out:
        print(f"not in the file: {'; '.join(made.left_out)}")


def _push_flags():
    codec.define_step()
    flags.DEFINE_string("license", None, "license for the model card, as the hub spells it: apache-2.0, mit")
    flags.DEFINE_bool("private", False, "make a new repository private")


def _push(model, target):
    values = flags.FLAGS
    pushed = publication.push_to_hub(model, target, step=values.step, license=values.license, private=values.private)
    print(f"{pushed.address}: commit {pushed.commit}")


INSPECT_MODEL = Command(
    name="inspect_model",
    details="MODEL is a saved model, a workdir, a StableHLO export, or a torch, Lightning or safetensors file.",
    main=_inspect,
    positional=(MODEL,),
    define_flags=_inspect_flags,
)
CALIBRATE_LATENTS = Command(
    name="calibrate_latents",
    details="""\
IN is an audio file or a folder of them. OUT is the saved model to write, local or in a bucket. It may be MODEL.""",
    main=_calibrate,
    positional=(MODEL, "IN", "OUT"),
    bucket_output=True,
    define_flags=_calibrate_flags,
)
AVERAGE_CHECKPOINTS = Command(
    name="average_checkpoints",
    details="""\
WORKDIR is the workdir of a run. OUT is the saved model to write, local or in a bucket. It has the mean of the
checkpoints' parameters, without a discriminator, and their steps in its metadata.""",
    main=_average,
    positional=("WORKDIR", "OUT"),
    bucket_output=True,
    define_flags=_average_flags,
)
EXPORT_STABLEHLO = Command(
    name="export_stablehlo",
    details="OUT is a new folder. It gets two `jax.export` artifacts, which contain the weights, and a description.",
    main=_export,
    positional=(MODEL, "OUT"),
    define_flags=_export_flags,
)
IMPORT_TORCH = Command(
    name="import_torch",
    details="""\
MODEL is a `save_model` file, a Lightning checkpoint, a bare state dict or safetensors, or the model of another project:
a folder of diffusers (`AutoencoderOobleck`), or a checkpoint of stable-audio-tools, DAC or DACVAE. It may be on the
hub: hf://owner/name[/folder][@revision]. OUT is the folder to write, local or in a bucket. Nothing in MODEL is
executed, and torch is not needed.""",
    main=_import,
    positional=(MODEL, "OUT"),
    bucket_output=True,
    define_flags=_import_flags,
)
EXPORT_TORCH = Command(
    name="export_torch",
    details="""\
MODEL is a saved model, a training workdir, or a file that `import_torch` can read. OUT ends in .pt or .safetensors.
For stable-audio-tools it ends in .ckpt or .safetensors, and for diffusers it is a new folder.""",
    main=_export_torch,
    positional=(MODEL, "OUT"),
    define_flags=_export_torch_flags,
)
PUSH_TO_HUB = Command(
    name="push_to_hub",
    details="""\
MODEL is any model. OUT is hf://owner/name[/folder][@branch]. A repository that does not exist is created. A saved model
there is replaced, in one commit. A README.md of your own is kept, and one that push_to_hub wrote is replaced.""",
    main=_push,
    positional=(MODEL, "OUT"),
    bucket_output=True,
    define_flags=_push_flags,
    interrupted="nothing was written",
)
