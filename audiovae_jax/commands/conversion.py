"""`import_torch`, `export_torch` and `migrate_config`."""

from pathlib import Path

from absl import flags

from audiovae_jax.commands import bundled_configs, cli, codec
from audiovae_jax.commands.command import MODEL, Command
from audiovae_jax.data.files import printable
from audiovae_jax.errors import ConfigError
from audiovae_jax.migration import migrate
from audiovae_jax.persistence import conversion


def _import_flags():
    flags.DEFINE_list("dilations", None, "of the residual units, where MODEL has no model_config: 1,3,9")
    flags.DEFINE_bool("strict", True, "--nostrict takes what fits and names what does not")


def _import(model, target):
    dilations = cli.whole_numbers("dilations", flags.FLAGS.dilations)
    conversion.import_torch(model, target, dilations=dilations, strict=flags.FLAGS.strict)


def _export(model, target):
    conversion.export_torch(model, target, step=flags.FLAGS.step)


def _migrate_flags():
    flags.DEFINE_string("output", None, "the config file to make; without it, it is only told", short_name="o")
    flags.DEFINE_bool("overwrite", False, "replace the output, if it is there")


def _migrate(*given):
    output = flags.FLAGS.output
    if output is not None and not output.endswith(".py"):
        raise ConfigError(f"--output={output} must end in .py")
    if output is not None and Path(output).exists() and not flags.FLAGS.overwrite:
        raise ConfigError(f"{printable(output)} is there already; --overwrite replaces it")
    overrides = [name for name in given if ("=" in name or name.startswith("~")) and not Path(name).is_file()]
    if given[0] in overrides:
        raise ConfigError("give the old config first, for instance configs/train.yaml, then KEY=VALUE")
    files = [Path(name) for name in given if name not in overrides]
    reference = bundled_configs.reference()
    made = migrate.migrate(files, overrides, reference)
    for title, lines in (
        ("read", [printable(file) for file in made.files]),
        ("differs from configs/base.py", made.statements),
        ("taken, with a difference", made.changed),
        ("no counterpart", made.dropped),
    ):
        print(f"{title}: {len(lines)}" + "".join(f"\n  {line}" for line in lines))
    if output is not None:
        migrate.write(made, Path(output), reference)
        print(f"written to {printable(output)}: scripts/train.py --config={printable(output)}")


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
MIGRATE_CONFIG = Command(
    name="migrate_config",
    description="""Make a config of the PyTorch system's Hydra configs, and list what has no counterpart.

OLD is its main config, whose folder holds the groups that its defaults name; then other files of the tree to choose
in place of those, and KEY=VALUE as on Hydra's command line. Nothing in them is executed.""",
    main=_migrate,
    positional=("OLD...",),
    define_flags=_migrate_flags,
)
