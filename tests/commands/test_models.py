"""The commands on one model."""

import json
import re
import types

import jax
import numpy as np
import pytest
import soundfile
from absl import flags
from conftest import GOLDEN, random_variables

from audiovae_jax import AudioVAE, load_model, save_model
from audiovae_jax.commands import models
from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence import saved_model


def _import_flags():
    return types.SimpleNamespace(dilations=None, strict=True, step=None, model_config=None, project=None)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with songs and a model of unknown sample rate. It is the working directory."""
    (tmp_path / "songs").mkdir()
    rng = np.random.default_rng(0)
    for i in range(10):
        soundfile.write(tmp_path / "songs" / f"{i}.wav", 0.3 * rng.standard_normal((2000, 2)), 8000)
    model = AudioVAE(base_channels=2, channel_mults=(1, 2), strides=(2, 4), latent_dim=3)
    save_model(model, random_variables(model), tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _calibrate(monkeypatch, *paths, **values):
    given = types.SimpleNamespace(**{"limit": None, "verify": False, "sample_rate": 8000, **values})
    monkeypatch.setattr(flags, "FLAGS", given)
    models.CALIBRATE_LATENTS.main(*map(str, paths))


@pytest.mark.slow
def test_calibration_reports_its_measurements_and_their_files(folder, monkeypatch, capsys):
    (folder / "songs" / "empty.wav").touch()
    _calibrate(monkeypatch, "m", "songs", "n")
    lines = capsys.readouterr().out.splitlines()
    assert "skipped songs/empty.wav: the file is empty" in lines
    assert "calibrated on 10 files, 2,500 latent frames of 8 samples" in lines
    assert not any("after" in line for line in lines)
    _calibrate(monkeypatch, "m", "songs", "n", verify=True)
    lines = capsys.readouterr().out.splitlines()
    (measured,) = (line for line in lines if line.startswith("measured afterwards on "))
    assert measured == "measured afterwards on 3 other files: songs/1.wav, songs/5.wav, songs/9.wav"
    (after,) = (line for line in lines if line.startswith("after: |mean| at most "))
    assert 0 < float(after.split()[4].rstrip(",")) < 0.5
    assert after != "after: |mean| at most 0.0000, variance 1.0000 to 1.0000"
    assert lines[-1] == "written to n"


@pytest.mark.slow
def test_inspection_ends_with_a_table_of_layers(folder, monkeypatch, capsys):
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(step=None, json=False))
    models.INSPECT_MODEL.main("m")
    lines = capsys.readouterr().out.splitlines()
    (start,) = (i for i, line in enumerate(lines) if line.startswith("layer "))
    names = ("input_conv", "blocks_0", "blocks_1", "final_conv")
    rows = [line.split() for line in lines[start + 1 :]]
    assert [row[0] for row in rows] == [f"{part}/{name}" for part in ("encoder", "decoder") for name in names]
    assert rows[0][1:4] == ["2", "1", "unknown"]  # width, samples per position, rate
    assert len({len(line) for line in lines[start:]}) == 1


@pytest.mark.slow
def test_models_are_written_to_a_bucket(bucket, folder, monkeypatch, capsys):
    _calibrate(monkeypatch, "m", "songs", f"{bucket}/calibrated", verify=True)
    assert saved_model.open_model(f"{bucket}/calibrated").sample_rate == 8000
    assert json.loads((bucket / "calibrated" / "model.json").read_text())["latent_statistics"] == "calibrated"
    monkeypatch.setattr(flags, "FLAGS", _import_flags())
    models.IMPORT_TORCH.main(str(GOLDEN / "lightning.ckpt"), f"{bucket}/imported")
    assert "largest difference 0\n" in capsys.readouterr().out
    imported, original = (load_model(path)[1] for path in (f"{bucket}/imported", GOLDEN / "lightning.ckpt"))
    jax.tree.map(np.testing.assert_array_equal, imported, original)
    assert sorted(path.name for path in folder.iterdir()) == ["m", "songs"]


@pytest.mark.slow
def test_both_conversions_print_their_reports(folder, monkeypatch, capsys):
    source = str(GOLDEN / "lightning.ckpt")
    monkeypatch.setattr(flags, "FLAGS", _import_flags())
    models.IMPORT_TORCH.main(source, "imported")
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines if line}
    assert rows["tensor"].split() == ["tensor", "type", "imported", "as"]
    assert rows["encoder.blocks.0.downsample.1.bias"].split()[1] == "float32[2]"
    assert rows["loss_calculator.global_step"].split(maxsplit=3)[2:] == [
        "-",
        "ignored: of another part, not of the model",
    ]
    assert any(line.endswith(" ignored") and " tensors imported, " in line for line in lines)
    assert any(line.startswith("config: in_channels=2, base_channels=2, channel_mults=(1, 2)") for line in lines)
    assert "note: global_step=6 counts the updates of both optimizers; 3 batches were seen" in lines
    assert f"      with --config.init_from={source}" in lines
    assert lines[-1].endswith("largest difference 0")
    models.EXPORT_TORCH.main("m", "m.safetensors")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("m.safetensors: ")
    assert lines[-1] == "not in the file: the sample rate, which is unknown (give --sample_rate when loading)"


def test_a_model_is_described_in_one_line_per_value(folder, monkeypatch, capsys):
    monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(json=False, step=None))
    models.INSPECT_MODEL.main("m")
    rows = dict(re.split(r" {2,}", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert (rows["path"], rows["kind"], rows["sample rate (Hz)"]) == ("m", "saved model", "unknown")
    assert rows["metadata"] == "none"
    assert rows["config"].startswith("in_channels=2, base_channels=2, ")


def test_a_bad_output_is_refused_before_any_work(folder, monkeypatch):
    monkeypatch.setattr(saved_model, "open_model", lambda *_, **__: pytest.fail("it read the model"))
    for name, reason in (("x.pth", "must end in .pt or .safetensors"), ("m/model.json/x.pt", "cannot be written")):
        monkeypatch.setattr(flags, "FLAGS", types.SimpleNamespace(step=None, project=None))
        with pytest.raises(CheckpointError, match=reason):
            models.EXPORT_TORCH.main("m", name)
