"""The commands on files."""

import json
from pathlib import Path

import command_line
import numpy as np
import pytest
import soundfile
from conftest import SMALL_MODEL, random_variables

from audiovae_jax import AudioVAE, save_model
from audiovae_jax.commands import cli

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_files_through_a_model_by_every_command(tmp_path):
    """One test, since each command takes seconds to start."""
    model = AudioVAE(**SMALL_MODEL)
    save_model(model, random_variables(model), tmp_path / "m", sample_rate=8000)
    (tmp_path / "songs" / "deeper").mkdir(parents=True)
    for name in ("a.wav", "deeper/b.flac"):
        audio = 0.2 * np.random.default_rng(0).standard_normal((3001, 2))
        soundfile.write(tmp_path / "songs" / name, audio, 8000)
    (tmp_path / "songs" / "bad.wav").write_bytes(b"nonsense")

    def run(name, *args, status=0):
        done = command_line.run(name, *args, cwd=tmp_path)
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    said = run("encode", "m", "songs", "latents", status=1)
    assert "bad.wav: not audio that can be read" in said
    assert "2 written, 0 skipped (already there), 1 failed" in said
    (tmp_path / "songs" / "bad.wav").unlink()
    assert "2 written" in run("decode", "m", "latents", "out", "--format=flac")
    assert "1 written" in run("reconstruct", "m", "songs/a.wav", "direct.wav", "--chunk_length=100")
    assert "1 written" in run("reconstruct", "m", "songs/a.wav", "direct.flac")
    assert soundfile.info(tmp_path / "direct.flac").format == "FLAC"
    contradiction = run("reconstruct", "m", "songs/a.wav", "x.flac", "--format=wav", status=1)
    assert "--format=wav and x.flac contradict each other" in contradiction
    contradiction = run("reconstruct", "m", "songs/a.wav", "x.flac", "--peak=keep", status=1)
    assert "--peak=keep needs a format of floats: make x.flac a .wav" in contradiction
    decoded, _ = soundfile.read(tmp_path / "out" / "a.flac")
    direct, rate = soundfile.read(tmp_path / "direct.wav")
    assert (decoded.shape, rate) == ((3001, 2), 8000)
    np.testing.assert_allclose(decoded, np.clip(direct, -1, 1), atol=1e-5)
    assert (tmp_path / "out" / "deeper" / "b.flac").exists()
    assert "2 tracks, 0.00 hours" in run("encode_dataset", "m", "songs", "shards", "--what=samples")
    assert "seed: 0 there, 1 now differ" in run(
        "encode_dataset", "m", "songs", "shards", "--what=samples", "--seed=1", status=1
    )
    assert "written to m" in run("calibrate_latents", "m", "songs", "m")
    described = json.loads(run("inspect_model", "m", "--json"))
    assert described["metadata"]["calibration_frames"] == 2 * 376
    assert (described["sample rate (Hz)"], described["hop (samples)"]) == (8000, 8)
    # The latents belong to the model before its calibration.
    assert "were encoded by another model" in run("decode", "m", "latents", "again", status=1)
    run("export_torch", "m", "m.pt")
    run("import_torch", "m.pt", "back")
    assert json.loads(run("inspect_model", "back", "--json"))["config"]["dilations"] == [1, 3, 9]
    assert "[batch, 8*n, 2]" in run("export_stablehlo", "m", "served", "--platforms=cpu")


def _module(*args, cwd):
    done = command_line.run(*args, cwd=cwd)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "flag"), [("train", "--workdir"), ("encode_dataset", "--record_frames")])
def test_help_lists_the_flags_and_ends_with_status_0(name, flag, tmp_path):
    status, said = _module(name, "--help", cwd=tmp_path)
    assert status == 0
    assert said.startswith(cli.COMMANDS[name].summary)
    assert f"python -m audiovae_jax {name}" in said
    listed = command_line.flags_in(said)
    assert flag in listed
    assert ("--config" in listed) == (name == "train")


def test_scripts_contains_only_training():
    assert [path.name for path in (ROOT / "scripts").glob("*.py")] == ["train.py"]


@pytest.mark.slow
def test_commands_work_as_a_module_in_any_folder(tmp_path):
    status, said = _module(cwd=tmp_path)
    assert status == 1
    assert all(name in said for name in cli.COMMANDS)
    assert "there is no command 'trian'; did you mean 'train'?" in _module("trian", cwd=tmp_path)[1]
    status, said = _module("train", "--config=tiny:no_adversarial", "--config.data.crop_length=500", cwd=tmp_path)
    assert (status, "not a multiple of the model's hop of 64" in said) == (1, True)
    refused = _module("benchmark", "data", "--config=tiny", "--profile", cwd=tmp_path)[1]
    assert "benchmark data has no flag --profile; its flags are --config, --json, --batch_size, --crop" in refused
    (tmp_path / "songs").mkdir()
    status, said = _module("encode", "songs", "latents", cwd=tmp_path)
    forgotten = (
        "error: no model was given: songs is not a model; usage: encode MODEL IN... OUT [flags] (--help lists them)\n"
    )
    assert (status, said) == (1, forgotten)
    status, said = _module("train", "--help", cwd=tmp_path)
    assert status == 0
    assert cli.COMMANDS["train"].summary in said
    assert "--workdir" in said
    (tmp_path / "mine.py").write_text("from configs import base\n\n\ndef get_config():\n    return base.nothing\n")
    assert "has no attribute 'nothing'" in _module("train", "--config=mine.py", cwd=tmp_path)[1]
