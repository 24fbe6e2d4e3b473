"""Exported encoder and decoder run with JAX alone, and are the module."""

import json
import subprocess
import sys

import numpy as np
import pytest
from conftest import applied, random_variables

from audiovae_jax import AudioVAE, Codec
from audiovae_jax.errors import CheckpointError
from audiovae_jax.inference.stablehlo import export_stablehlo

_SERVE = """
import json, sys, pathlib
import numpy as np
from jax import export
folder = pathlib.Path(sys.argv[1])
manifest = json.loads((folder / "export.json").read_text())
encode, decode = (export.deserialize((folder / manifest[n]["file"]).read_bytes()) for n in ("encoder", "decoder"))
for i in range(int(sys.argv[2])):
    z = np.asarray(encode.call(np.load(folder / f"audio_{i}.npy")))
    np.savez(folder / f"served_{i}.npz", z=z, audio=np.asarray(decode.call(z)))
assert not [name for name in sys.modules if name.startswith(("audiovae_jax", "flax"))]
"""


@pytest.mark.parametrize("strides", [(2, 4), (3, 5)])
def test_the_artifacts_are_the_module(tmp_path, strides):
    model = AudioVAE(base_channels=2, channel_mults=(1, 2), strides=strides, latent_dim=3, dilations=(1,))
    variables = random_variables(model)
    codec = Codec(model, variables, sample_rate=8000)
    manifest = export_stablehlo(codec, tmp_path / "served")
    assert manifest["platforms"] == ["cpu", "cuda", "tpu"]
    assert json.loads((tmp_path / "served" / "export.json").read_text()) == manifest
    hop = model.hop_length
    inputs = [
        np.random.default_rng(0).standard_normal((b, n * hop, 2)).astype(np.float32) for b, n in ((1, 7), (3, 20))
    ]
    for i, audio in enumerate(inputs):
        np.save(tmp_path / "served" / f"audio_{i}.npy", audio)
    command = [sys.executable, "-c", _SERVE, str(tmp_path / "served"), str(len(inputs))]
    subprocess.run(command, check=True, cwd=tmp_path)
    for i, audio in enumerate(inputs):
        served = np.load(tmp_path / "served" / f"served_{i}.npz")
        expected = applied(model, variables, audio, deterministic=True, method="encode").z
        np.testing.assert_allclose(served["z"], expected, atol=1e-5)
        decoded = applied(model, variables, expected, method="decode")
        np.testing.assert_allclose(served["audio"], decoded, atol=1e-5)
    with pytest.raises(CheckpointError, match="served exists; give another folder"):
        export_stablehlo(codec, tmp_path / "served")
    with pytest.raises(CheckpointError, match="platforms=abacus: choose from cpu, cuda, tpu, rocm"):
        export_stablehlo(codec, tmp_path / "other", platforms=("abacus",))
    assert [p.name for p in tmp_path.iterdir()] == ["served"]
