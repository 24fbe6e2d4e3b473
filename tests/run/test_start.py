"""The start of a run: the description of its data, and resuming."""

import jax
import numpy as np
import pytest
import soundfile

from audiovae_jax.config import build
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import ConfigError
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import start, train
from audiovae_jax.training.state import Creation


@pytest.mark.parametrize("name", ["jax_debug_nans", "jax_debug_infs"])
def test_flags_without_effect_on_a_compiled_step_are_refused(micro_config, tmp_path, name):
    jax.config.update(name, True)
    try:
        with pytest.raises(ConfigError, match=f"{name.upper()} is set.* Unset it: .* bad_batches/"):
            train.train(micro_config, tmp_path / "run")
    finally:
        jax.config.update(name, False)
    assert not (tmp_path / "run").exists()


def _described(config, data):
    recipe = build.build_recipe(config)
    return start.describe(config, recipe, data, Creation(recipe, build.example_shape(config)).shapes)


@pytest.mark.parametrize(("files", "share"), [(9, "11%"), (12, "25%"), (30, "10%")])
def test_the_actual_share_of_validation_files_is_reported(micro_config, tmp_path, files, share):
    rng = np.random.default_rng(0)
    for i in range(files):
        soundfile.write(tmp_path / f"{i}.wav", 0.3 * rng.standard_normal((4410, 2)), 44100)
    micro_config.data.root, micro_config.data.index, micro_config.data.num_samples = str(tmp_path), False, 4
    micro_config.use_adversarial = False
    data = pipeline.open_data(micro_config.data, batch_size=4, seed=0)
    validating = len(data.catalog.validation)
    assert validating == (1 if files < 10 else 3)
    (line,) = [line for line in _described(micro_config, data) if line.startswith("data")]
    assert (
        f"{files - validating} to train on (0.0 min) and {validating} for validation (0.0 min, {share} of all)" in line
    )
    heard = [data.samples[i] is not None and data.samples.origin(i).file for i in range(4)]
    assert len(set(heard)) == validating


def test_a_run_reports_loud_files_and_assumed_speakers_once(micro_config, audio_folder):
    noise = np.random.default_rng(0).uniform(-20, 20, (22050, 6))
    soundfile.write(audio_folder / "loud.wav", noise[:, :2], 44100, subtype="FLOAT")
    soundfile.write(audio_folder / "surround.wav", 0.01 * noise, 44100)
    micro_config.data.root, micro_config.data.index = str(audio_folder), False
    micro_config.use_adversarial = False
    data = pipeline.open_data(micro_config.data, batch_size=4, seed=0)
    said = _described(micro_config, data)
    surround, loud = [line for line in said if line.startswith("warning: ")]
    assert surround.startswith("warning: 1 file with 6 channels and no channel map, read as 5.1; the first: ")
    assert loud.startswith(f"warning: 1 file far above full scale; the loudest: {audio_folder}/loud.wav peaks at +26.0")


def test_a_start_warns_of_copies_in_both_splits_and_names_what_is_left_out(micro_config, tmp_path):
    rng = np.random.default_rng(0)
    lines = []
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", 0.3 * rng.standard_normal((4410, 2)), 44100)
        lines.append(f'{{"path": "{i}.wav", "split": "{"train" if i < 3 else "validation"}"}}')
    micro_config.use_adversarial, micro_config.data.index = False, False
    micro_config.data.root = str(tmp_path / "list.jsonl")

    def described():
        (tmp_path / "list.jsonl").write_text("\n".join(lines))
        data = pipeline.open_data(micro_config.data, batch_size=4, seed=0)
        return "\n".join(_described(micro_config, data))

    assert "warning" not in described()
    samples, rate = soundfile.read(tmp_path / "1.wav", dtype="int16")
    soundfile.write(tmp_path / "copy.flac", samples, rate)
    lines.append('{"path": "copy.flac", "split": "validation"}')
    said = described()
    assert "warning: 1 of 2 validation tracks are exact copies of training tracks" in said
    assert f"the first: {tmp_path}/copy.flac is {tmp_path}/1.wav" in said
    (tmp_path / "a.amr").touch()
    micro_config.data.root = str(tmp_path)
    assert "left out: .amr is not read; convert it to FLAC" in described()


@pytest.mark.slow
def test_a_run_whose_data_is_split_otherwise_resumes_with_a_warning(trained_run):
    workdir, config, trained = trained_run
    checkpoints = Checkpoints(workdir / "checkpoints", read_only=True)
    said = []
    given = (config, build.build_recipe(config), mesh.make_mesh(), checkpoints)
    state, step, _, _ = start.initial_state(*given, "built-in", said.append)
    assert (step, said) == (2, ["resuming from step 2"])
    state, step, _, _ = start.initial_state(*given, "another", said.append)
    assert step == 2
    assert "warning: the audio under config.data.root or its split has changed" in said[-1]
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), trained)
