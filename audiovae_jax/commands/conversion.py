"""`import_torch` and `export_torch`."""

from absl import flags

from audiovae_jax.commands import cli, codec
from audiovae_jax.commands.command import MODEL, Command
from audiovae_jax.persistence import conversion


def _import_flags():
    flags.DEFINE_list("dilations", None, "of the residual units, where MODEL has no model_config: 1,3,9")
    flags.DEFINE_bool("strict", True, "--nostrict takes what fits and names what does not")


def _import(model, target):
    dilations = cli.whole_numbers("dilations", flags.FLAGS.dilations)
    conversion.import_torch(model, target, dilations=dilations, strict=flags.FLAGS.strict)


def _export(model, target):
    conversion.export_torch(model, target, step=flags.FLAGS.step)


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
    main=_export,
    positional=(MODEL, "OUT"),
    define_flags=codec.define_step,
)
