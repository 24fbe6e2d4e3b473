"""Start the package's commands as users do, in any folder."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def line(*arguments) -> list[str]:
    """The command line of `audiovae-jax ARGUMENTS`, the first of which is the command."""
    return [sys.executable, "-m", "audiovae_jax", *map(str, arguments)]


def environment() -> dict[str, str]:
    """This process's environment, in which the package is found from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def run(*arguments, cwd: Path) -> subprocess.CompletedProcess:
    """Run a command in a folder, and capture what it prints as text."""
    return subprocess.run(line(*arguments), capture_output=True, text=True, cwd=cwd, env=environment(), check=False)


def flags_in(text: str) -> set[str]:
    """The flags that a command's help lists."""
    return {f"--{flag}" for flag in re.findall(r"^  (?:-\w,)?--(?:\[no\])?([\w.]+):", text, flags=re.MULTILINE)}
