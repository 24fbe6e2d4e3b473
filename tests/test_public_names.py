"""The names of `audiovae_jax`: they are imported on first use, and tools see them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import audiovae_jax

ROOT = Path(__file__).resolve().parents[1]


def _modules_after(*statements):
    """Return the modules that a new process has loaded after each of the statements."""
    code = "import sys\n" + "".join(f"{statement}\nprint(*sys.modules)\n" for statement in statements)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    return [set(line.split()) for line in done.stdout.splitlines()]


def test_a_name_is_imported_on_first_use():
    package, losses, names = _modules_after(
        "import audiovae_jax; dir(audiovae_jax)",
        "audiovae_jax.losses.si_sdr",
        "from audiovae_jax import *; AudioVAE, Codec, load_model",
    )
    assert not package & {"jax", "numpy", "absl"}
    assert "jax" in losses
    assert not losses & {"orbax", "flax", "soundfile", "librosa", "scipy.signal", "matplotlib"}
    assert {"audiovae_jax.inference.codec", "audiovae_jax.persistence.saved_model"} <= names


def test_tools_see_the_names():
    assert set(audiovae_jax.__all__) <= set(dir(audiovae_jax))
    imported = [
        alias.asname
        for statement in ast.parse(Path(audiovae_jax.__file__).read_text()).body
        if isinstance(statement, ast.If)
        for node in statement.body
        for alias in node.names
    ]
    assert sorted(imported) == sorted(audiovae_jax.__all__)
    assert audiovae_jax.LatentDataset.__name__ == "LatentDataset"
    assert all(hasattr(audiovae_jax, name) for name in imported)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'audiovae_jax' has no attribute 'nothing'"):
        _ = audiovae_jax.nothing
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from audiovae_jax import nothing")
