"""Latent statistics from data."""

import json
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
from conftest import applied, random_variables

from audiovae_jax import AudioVAE, Codec, load_model, save_model
from audiovae_jax.config import configuration
from audiovae_jax.errors import CheckpointError, DataError
from audiovae_jax.inference.calibration import RunningMoments, calibrate
from audiovae_jax.persistence.checkpoint import Checkpoints

CONFIG = {"base_channels": 2, "channel_mults": (1, 2), "strides": (2, 4), "latent_dim": 3, "dilations": (1,)}


def test_moments_of_blocks_equal_those_of_all_values():
    """Far from zero, where a sum of squares loses all precision."""
    values = 1e6 + np.random.default_rng(0).standard_normal((1000, 3)) * [1e-3, 1, 10]
    moments = RunningMoments(3)
    for block in np.split(values, [1, 10, 500]):
        moments.add(block[:, None])
    assert moments.count == 1000
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments.std, values.std(axis=0), rtol=1e-6)


@pytest.fixture
def data(tmp_path):
    (tmp_path / "audio" / "deeper").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a.wav", "deeper/b.wav"):
        soundfile.write(tmp_path / "audio" / name, 0.3 * rng.standard_normal((2000, 2)), 8000)
    (tmp_path / "audio" / "empty.wav").touch()
    return tmp_path / "audio"


def test_a_target_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path, data, monkeypatch):
    _saved(tmp_path / "m")
    monkeypatch.setattr(Codec, "stream", lambda *_, **__: pytest.fail("it measured"))
    (tmp_path / "file").touch()
    for target in ("/proc/nope", str(tmp_path / "file"), str(tmp_path / "file" / "x")):
        with pytest.raises(CheckpointError, match=r"cannot be written: |exists and is not a saved model"):
            calibrate(str(tmp_path / "m"), str(data), target)


def _saved(path, **options):
    model = AudioVAE(**CONFIG)
    variables = random_variables(model)
    save_model(model, variables, path, sample_rate=8000, metadata={"note": "kept"}, **options)
    return model, variables


def test_calibrated_latents_have_zero_mean_and_unit_variance(tmp_path, data, capsys):
    model, variables = _saved(tmp_path / "m", optimizer_state={"count": jnp.ones(())}, global_step=7)
    made = calibrate(str(tmp_path / "m"), str(data), str(tmp_path / "m"), verify=True)
    assert capsys.readouterr().out == ""
    assert made.before.files == (data / "a.wav", data / "deeper" / "b.wav")  # one of three could not be read
    assert "empty.wav: the file is empty" in made.before.skipped[0]
    assert (made.before.frames, made.hop_length) == (500, 8)
    # With three files, none are held out.
    assert not made.held_out
    assert made.after.files == made.before.files
    np.testing.assert_allclose(made.after.mean, 0, atol=1e-5)
    np.testing.assert_allclose(made.after.std, 1, atol=1e-5)
    assert not np.allclose(made.before.std, 1, atol=1e-2)
    codec = Codec.load(tmp_path / "m")
    z = np.concatenate([codec.encode(path).z[0] for path in (data / "a.wav", data / "deeper" / "b.wav")])
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-5)
    # The audio is equal, since the statistics cancel.
    again, calibrated = load_model(tmp_path / "m")
    audio = soundfile.read(data / "a.wav", dtype="float32")[0][None]
    np.testing.assert_allclose(
        applied(again, calibrated, audio, deterministic=True).reconstruction,
        applied(model, variables, audio, deterministic=True).reconstruction,
        atol=1e-5,
    )
    description = json.loads((tmp_path / "m" / "model.json").read_text())
    assert description["latent_statistics"] == "calibrated"
    assert description["metadata"] == {"note": "kept", "calibrated_on": str(data), "calibration_frames": 500}
    assert description["global_step"] == 7
    assert set(description["arrays"]) == {"model", "optimizer"}


@pytest.mark.slow
def test_the_written_model_is_measured_on_other_files(tmp_path):
    _saved(tmp_path / "m")
    rng = np.random.default_rng(0)
    for i in range(12):
        (tmp_path / "songs").mkdir(exist_ok=True)
        soundfile.write(tmp_path / "songs" / f"{i:02d}.wav", 0.02 * (1 + i) * rng.standard_normal((2000, 2)), 8000)
    made = calibrate(str(tmp_path / "m"), str(tmp_path / "songs"), str(tmp_path / "n"), verify=True)
    assert made.held_out
    assert len(made.after.files) == 3
    assert not set(made.after.files) & set(made.before.files)
    assert len(made.before.files) == 9
    codec = Codec.load(tmp_path / "n")
    z = np.concatenate([codec.encode(path).z[0] for path in made.after.files])
    np.testing.assert_allclose(made.after.mean, z.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(made.after.std, z.std(axis=0), atol=1e-5)
    assert not np.allclose(made.after.std, 1, atol=1e-3)  # these are other files
    alone = calibrate(str(tmp_path / "m"), str(tmp_path / "songs"), str(tmp_path / "n"))
    assert len(alone.before.files) == 12
    assert alone.after is None  # only measured statistics are reported


@pytest.mark.slow
def test_the_model_that_was_measured_is_written(tmp_path, data, trained_run, monkeypatch):
    """Also if the run continues, and writes a better checkpoint before the audio is encoded."""
    workdir, config, state = trained_run
    folder = tmp_path / "run" / "checkpoints"
    shutil.copytree(workdir / "checkpoints", folder)
    measured = load_model(tmp_path / "run")[1]
    better = state.replace(params=jax.tree.map(lambda x: x * np.float32(1.5), state.params))
    stream, waiting = Codec.stream, [better]

    def train_on_first(*args, **options):
        if waiting:
            store = Checkpoints(folder)
            store.save(
                jax.device_put(waiting.pop()),
                step=3,
                config=configuration.plain(config),
                data={},
                metrics={"total_loss": -1.0},
            )
            store.close()
        return stream(*args, **options)

    monkeypatch.setattr(Codec, "stream", train_on_first)
    calibrate(str(tmp_path / "run"), str(data), str(tmp_path / "m"), sample_rate=44100)
    jax.tree.map(np.testing.assert_array_equal, load_model(tmp_path / "run")[1]["params"], better.params)
    written = load_model(tmp_path / "m")[1]
    jax.tree.map(np.testing.assert_array_equal, written["params"], measured["params"])
    codec = Codec.load(tmp_path / "m")
    z = np.concatenate([codec.encode(path).z[0] for path in (data / "a.wav", data / "deeper" / "b.wav")])
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(z.std(axis=0), 1, atol=1e-4)


@pytest.mark.slow
def test_a_given_sample_rate_is_written(tmp_path, data):
    model = AudioVAE(**CONFIG)
    save_model(model, random_variables(model), tmp_path / "m")
    calibrate(str(tmp_path / "m"), str(data), str(tmp_path / "n"), sample_rate=48000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Codec.load(tmp_path / "n").sample_rate == 48000
    assert json.loads((tmp_path / "n" / "model.json").read_text())["sample_rate"] == 48000
    with pytest.raises(CheckpointError, match="its sample rate is 48000 Hz, not sample_rate=8000"):
        calibrate(str(tmp_path / "n"), str(data), str(tmp_path / "n"), sample_rate=8000)


def test_data_that_cannot_calibrate_is_refused(tmp_path, data):
    _saved(tmp_path / "m")
    with pytest.raises(DataError, match="contains no audio file"):
        calibrate(str(tmp_path / "m"), str(tmp_path / "m"), str(tmp_path / "n"))
    soundfile.write(tmp_path / "silence.wav", np.zeros((4000, 2)), 8000)
    with pytest.raises(DataError, match="0 latent frames are too few"):
        calibrate(str(tmp_path / "m"), str(data / "empty.wav"), str(tmp_path / "n"))
    assert not (tmp_path / "n").exists()
