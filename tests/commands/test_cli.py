"""The list of commands, their help, and what a command imports."""

import os
import subprocess
import sys
from pathlib import Path

import old_configs
import pytest
from conftest import GOLDEN

from audiovae_jax.commands import cli

ROOT = Path(__file__).resolve().parents[2]


def _run(*lines, platform="cpu"):
    """Each command line's `(status, output, modules imported so far)`, run one after the other in a new process."""
    program = (
        "import contextlib, io, sys\n"
        "from audiovae_jax.commands import cli\n"
        f"for line in {lines!r}:\n"
        "    sys.argv = ['audiovae-jax', *line.split()]\n"
        "    output, status = io.StringIO(), 0\n"
        "    with contextlib.redirect_stdout(output):\n"
        "        try:\n"
        "            cli.main()\n"
        "        except SystemExit as ended:\n"
        "            status = ended.code or 0\n"
        "    print(repr((status, output.getvalue(), set(sys.modules))))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={**os.environ, "JAX_PLATFORMS": platform},
        cwd=ROOT, check=True,
    )  # fmt: skip
    return [eval(line) for line in done.stdout.splitlines()]


def test_every_command_has_model_inputs_and_output_in_this_order():
    order = [
        ("STEP|CODEC|DATA|COMPILE|MEMORY|LEARNING",),
        ("MODEL", "MODEL_OR_FOLDER"),
        ("ROOT", "IN", "WORKDIR", "OLD"),
        ("OUT",),
    ]
    for name in cli.COMMANDS:
        command = cli.load(name)
        assert command.name == name
        given = [word.upper().strip("[].") for word in command.positional]
        ranks = [next(i for i, words in enumerate(order) if word in words) for word in given]
        assert ranks == sorted(set(ranks)), command.positional


def test_the_list_is_printed_without_jax_and_help_without_what_the_command_runs():
    listed, nothing, wrong, helped = _run("--help", "", "trian", "train --help")
    assert (listed[0], nothing[0], nothing[1]) == (0, 1, listed[1])
    for name, entry in cli.COMMANDS.items():
        assert f"  {name} " in listed[1]
        assert entry.summary in listed[1]
    assert not nothing[2] & {"jax", "numpy", "absl", "audiovae_jax.commands.training"}
    assert wrong[0] == "error: there is no command 'trian'; did you mean 'train'?; --help lists them"
    status, output, modules = helped
    assert status == 0
    assert output.startswith(f"{cli.COMMANDS['train'].summary}\n\n  audiovae-jax train [flags]\n")
    assert "--workdir:" in output
    assert not modules & {"orbax", "grain", "scipy.signal", "tensorboardX", "audiovae_jax.run.train"}


@pytest.mark.parametrize("name", ["train", "benchmark"])
def test_a_restart_precedes_the_import_of_jax(name):
    program = (
        "import sys\n"
        "from audiovae_jax.commands import cli, process\n"
        "process.restart_with_huge_pages = lambda: sys.exit(int('jax' in sys.modules) + 2)\n"
        f"cli.main({name!r})\n"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT).returncode == 2


@pytest.mark.slow
def test_files_are_read_without_a_device(tmp_path):
    old_configs.write(tmp_path / "old")
    inspected, migrated = _run(
        f"inspect_model {GOLDEN / 'save_model.pt'} --json", f"migrate_config {tmp_path / 'old' / 'train.yaml'}",
        platform="none_there_is",
    )  # fmt: skip
    assert inspected[0] == 0
    assert '"latent_dim": ' in inspected[1]
    assert migrated[0] == 0
    assert "config.num_steps = " in migrated[1]
