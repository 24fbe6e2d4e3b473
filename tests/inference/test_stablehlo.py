"""Exported encoder and decoder run with only JAX, and equal the module."""

import datetime
import json
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import KINDS, applied, random_variables

from audiovae_jax import AudioVAE, Codec
from audiovae_jax.errors import CheckpointError
from audiovae_jax.inference.inspection import inspect_model
from audiovae_jax.inference.stablehlo import export_stablehlo, inspect_export

PAGE = Path(__file__).resolve().parents[2] / "audiovae_jax" / "inference" / "README.md"
SMALL = {"base_channels": 2, "channel_mults": (1, 2), "strides": (2, 4), "latent_dim": 3}
ONE_BLOCK = {"channel_mults": (1,), "strides": (4,)}  # enough, since another test uses several
# Runs a block in each folder. Later blocks see the exported functions.
_IN_EACH_FOLDER = """
import os, sys
import numpy as np
for folder in sys.argv[2:]:
    os.chdir(folder)
    names = {}
    exec(sys.argv[1], names)
    np.save("latents.npy", names["latents"])
assert not [name for name in sys.modules if name.startswith(("audiovae_jax", "flax"))]
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "atol"),
    [
        ({}, 1e-5),
        ({**KINDS["oobleck"], "strides": (2, 3)}, 1e-5),
        ({**KINDS["dacvae"], **ONE_BLOCK}, 1e-5),
        ({**ONE_BLOCK, "strides": (5,), "in_channels": 1, "kernel_size": 3}, 1e-5),
        pytest.param(
            {**ONE_BLOCK, "dtype": "bfloat16", "kernel_size": 5, "dilations": (2, 5)}, 1e-2, marks=pytest.mark.slow
        ),
    ],
)
def test_the_pages_block_runs_an_export_without_the_library_as_the_module(tmp_path, config, atol):
    model = AudioVAE(**(SMALL | config))
    variables = random_variables(model)
    manifest = export_stablehlo(Codec(model, variables, sample_rate=8000), tmp_path / "served")
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert json.loads((tmp_path / "served" / "export.json").read_text()) == manifest
    inputs = {}
    for batch, length in ((1, 1), (3, 20 * model.hop_length + 1)):
        folder = tmp_path / f"batch_{batch}"
        folder.mkdir()
        (folder / "served").symlink_to(tmp_path / "served")
        audio = np.random.default_rng(0).standard_normal((batch, length, model.in_channels)).astype(np.float32)
        np.save(folder / "audio.npy", audio)
        inputs[folder] = audio
    (block,) = re.findall(r"```python\n(import json\n.*?)```", PAGE.read_text(), flags=re.DOTALL)
    subprocess.run([sys.executable, "-c", _IN_EACH_FOLDER, block, *inputs], check=True, cwd=tmp_path)
    for folder, audio in inputs.items():
        latents, decoded = np.load(folder / "latents.npy"), np.load(folder / "decoded.npy")
        hops = latents.shape[1] + manifest["least_hops"] - 1
        padded = np.pad(audio, ((0, 0), (0, hops * model.hop_length - audio.shape[1]), (0, 0)))
        expected = applied(model, variables, padded, deterministic=True, method="encode").z
        np.testing.assert_allclose(latents, expected, atol=atol)
        assert decoded.shape == audio.shape
        expected = applied(model, variables, latents, method="decode")[:, : audio.shape[1]]
        np.testing.assert_allclose(decoded, expected, atol=atol)


def test_an_export_shows_until_when_it_loads(tmp_path):
    model = AudioVAE(**(SMALL | ONE_BLOCK))
    manifest = export_stablehlo(Codec(model, random_variables(model), sample_rate=8000), tmp_path / "m", ("cpu",))
    written, limit = (datetime.date.fromisoformat(manifest[key]) for key in ("date", "export_again_by"))
    assert (limit - written).days == 180
    loads = f"loads with jax {jax.__version__}"
    described = inspect_model(str(tmp_path / "m"))
    assert described == {"path": str(tmp_path / "m"), "kind": "StableHLO export", loads: "yes", **manifest}
    late = "yes, but newer releases may not; export the model again"
    assert inspect_export(tmp_path / "m", limit)[loads] == "yes"
    assert inspect_export(tmp_path / "m", limit + datetime.timedelta(days=1))[loads] == late
    del manifest["date"], manifest["export_again_by"]  # as older versions wrote it
    (tmp_path / "m" / "export.json").write_text(json.dumps(manifest))
    assert inspect_export(tmp_path / "m")[loads] == late
    (tmp_path / "m" / "decoder.jax_export").write_bytes(b"of another format")
    assert inspect_export(tmp_path / "m")[loads].startswith("no (")
    (tmp_path / "m" / "decoder.jax_export").unlink()
    with pytest.raises(CheckpointError, match="m is not an intact export .*; export the model again"):
        inspect_export(tmp_path / "m")


def test_a_failed_export_leaves_nothing(tmp_path):
    model = AudioVAE(**SMALL)
    codec = Codec(model, random_variables(model), sample_rate=8000)
    (tmp_path / "served").mkdir()
    with pytest.raises(CheckpointError, match="served exists; give another folder"):
        export_stablehlo(codec, tmp_path / "served")
    with pytest.raises(CheckpointError, match="platforms=abacus: choose from cpu, cuda, tpu, rocm"):
        export_stablehlo(codec, tmp_path / "other", platforms=("abacus",))
    assert [p.name for p in tmp_path.iterdir()] == ["served"]
