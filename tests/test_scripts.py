"""The commands on files, as a user gives them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import soundfile
from conftest import random_variables

from audiovae_jax import AudioVAE, save_model

ROOT = Path(__file__).resolve().parents[1]


def test_files_through_a_model_by_every_command(tmp_path):
    """One test, since each command takes seconds to start."""
    model = AudioVAE(base_channels=2, channel_mults=(1, 2), strides=(2, 4), latent_dim=3, dilations=(1,))
    save_model(model, random_variables(model), tmp_path / "m", sample_rate=8000)
    (tmp_path / "songs" / "deeper").mkdir(parents=True)
    for name in ("a.wav", "deeper/b.flac"):
        audio = 0.2 * np.random.default_rng(0).standard_normal((3001, 2))
        soundfile.write(tmp_path / "songs" / name, audio, 8000)
    (tmp_path / "songs" / "bad.wav").write_bytes(b"nonsense")

    def run(script, *args, status=0):
        command = [sys.executable, str(ROOT / "scripts" / script), *args]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    said = run("encode.py", "--model=m", "songs", "latents", status=1)
    assert "bad.wav: not audio that can be read" in said
    assert "2 made, 0 there already and skipped, 1 failed" in said
    (tmp_path / "songs" / "bad.wav").unlink()
    assert "2 made" in run("decode.py", "--model=m", "latents", "out", "--format=flac")
    assert "1 made" in run("reconstruct.py", "--model=m", "songs/a.wav", "direct.wav", "--chunk_length=100")
    decoded, _ = soundfile.read(tmp_path / "out" / "a.flac")
    direct, rate = soundfile.read(tmp_path / "direct.wav")
    assert (decoded.shape, rate) == ((3001, 2), 8000)
    np.testing.assert_allclose(decoded, np.clip(direct, -1, 1), atol=1e-5)
    assert (tmp_path / "out" / "deeper" / "b.flac").exists()
    assert "written to m" in run("calibrate_latents.py", "m", "songs", "m")
    described = json.loads(run("inspect_model.py", "m", "--json"))
    assert described["metadata"]["calibration_frames"] == 2 * 376
    assert (described["sample rate (Hz)"], described["hop (samples)"]) == (8000, 8)
    # The latents are of the model before its calibration.
    assert "were encoded by another model" in run("decode.py", "--model=m", "latents", "again", status=1)
    assert "[batch, 8*n, 2]" in run("export_stablehlo.py", "m", "served", "--platforms=cpu")
