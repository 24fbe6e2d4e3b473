"""The training loop: small but complete runs."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import soundfile

from audiovae_jax import losses
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.errors import ConfigError, DataError, TrainingError
from audiovae_jax.persistence import saved_model
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import train
from audiovae_jax.run.loop import Loop
from audiovae_jax.run.tracking import history, recorder, sessions
from audiovae_jax.run.tracking.writer import Writer, Writers
from audiovae_jax.run.validation import Validation
from audiovae_jax.run.workdir_lock import WorkdirLock

ROOT = Path(__file__).resolve().parents[2]


def _assert_same_state(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def test_a_run_leaves_what_it_should(micro_config, tmp_path, audio_folder, capsys):
    micro_config.data.root = str(audio_folder)
    (audio_folder / "bad.wav").write_text("not audio")
    state = train.train(micro_config, tmp_path / "run")
    assert state.step == 2
    printed = capsys.readouterr()
    assert "skipped" in printed.out + printed.err
    assert printed.out.strip().splitlines()[-1].startswith("done: step 2, val/total_loss ")
    workdir = tmp_path / "run"
    assert json.loads((workdir / "config.json").read_text())["model"]["base_channels"] == 4
    store = Checkpoints(workdir / "checkpoints", read_only=True)
    assert store.steps()[-1] == 2
    store.close()
    (samples,) = (workdir / "samples").iterdir()  # none of the untrained model
    assert samples.name == "step_00000002"
    assert sorted(p.name for p in samples.iterdir()) == ["0.png", "0_original.wav", "0_reconstruction.wav"]
    for name in ("original", "reconstruction"):
        audio, rate = soundfile.read(samples / f"0_{name}.wav")
        assert (audio.shape, rate) == ((4410, 2), 44100)  # sample_seconds, which is longer than a crop
    assert list(workdir.glob("events.out.tfevents*"))
    recorded = [json.loads(line).get("scalars", {}) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    rates = {name: value for scalars in recorded for name, value in scalars.items() if name.endswith("learning_rate")}
    assert rates == pytest.approx({"train/learning_rate": 1.5e-4, "train/discriminator_learning_rate": 1e-4})


@pytest.mark.slow
def test_the_same_command_on_a_finished_run_reports_done_again(trained_run, tmp_path, capsys):
    finished, config, state = trained_run
    workdir = shutil.copytree(finished, tmp_path / "run")
    _assert_same_state(train.train(config, workdir), state)
    store = Checkpoints(workdir / "checkpoints", read_only=True)
    done = f"done: step 2, val/total_loss {store.metrics(2)['total_loss']:.4f} "
    store.close()
    assert capsys.readouterr().out.strip().splitlines()[-1].startswith(done)
    next_config = ml_collections.ConfigDict(config)
    next_config.init_from = str(workdir)
    with pytest.raises(ConfigError, match=r"is already at step 2; raise config.num_steps=2"):
        train.train(next_config, tmp_path / "next")


@pytest.mark.slow
def test_a_start_that_failed_does_not_claim_the_workdir(micro_config, tmp_path):
    micro_config.data.root = "/no/such/folder"
    with pytest.raises(DataError, match="there is no such folder"):
        train.train(micro_config, tmp_path)
    micro_config.data.root = None
    assert train.train(micro_config, tmp_path).step == 2


@pytest.mark.slow
def test_a_gradient_that_is_not_finite_is_caught_before_it_is_saved(micro_config, tmp_path, monkeypatch):
    # The value is finite, but not the gradient. The loss does not show it, but the next checkpoint would.
    def root(*, prediction, target):
        return jnp.sqrt(jnp.sum(jnp.abs(prediction - prediction)))

    monkeypatch.setattr(losses, "root_for_test", root, raising=False)
    section = {"_target_": "audiovae_jax.losses.root_for_test", "weight": 1.0}
    micro_config.losses.root = ml_collections.ConfigDict(section)
    micro_config.use_adversarial = False
    micro_config.checkpoint_every = 1
    micro_config.safety.max_skipped, micro_config.safety.max_rollbacks = 1, 0
    with pytest.raises(TrainingError, match="(?s)not finite: train/g_grad_norm nan.*checkpoint: none\n.*try: to fi"):
        train.train(micro_config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_events_have_the_documented_names(trained_run):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(trained_run[0]))
    events.Reload()
    names = set(events.Tags()["scalars"])
    wanted = "total_g_loss d_loss g_adv_loss feature_matching_loss kl_loss kl_weight d_real_acc d_fake_acc"
    assert {f"train/{name}" for name in wanted.split()} | {"val/total_loss"} <= names


def teach(audio, sample_rate):
    """A teacher of `config.alignment`: eight features of each of four frames."""
    return np.abs(audio).reshape(4, 8, -1).mean(axis=2)


@pytest.mark.slow
def test_a_stopped_run_resumes_to_the_same_bits(micro_config, tmp_path):
    micro_config.num_steps = 3
    micro_config.optimizer.final_learning_rate = 0.0
    micro_config.adversarial.warmup_steps = 1  # stops at the checkpoint
    micro_config.discriminator_update_every = 2
    micro_config.ema.decay = 0.5
    micro_config.alignment._target_ = f"{__name__}.teach"
    whole = train.train(micro_config, tmp_path / "whole")
    # The same run, stopped after step 1's checkpoint, as the third batch is fetched.
    real, calls = Loop.next_batch, []

    def stop(self, *args):
        calls.append(1)
        if len(calls) == 3:
            self._session.checkpoints.wait()
            raise KeyboardInterrupt
        return real(self, *args)

    Loop.next_batch = stop
    try:
        with pytest.raises(KeyboardInterrupt):
            train.train(micro_config, tmp_path / "cut")
    finally:
        Loop.next_batch = real
    resumed = train.train(micro_config, tmp_path / "cut")
    _assert_same_state(resumed, whole)
    loaded = saved_model.open_model(tmp_path / "cut" / "checkpoints" / "3")
    assert loaded.averaged
    assert resumed.alignment_params["kernel"].shape == (4, 8)
    _assert_same_state(loaded.variables["params"], resumed.averaged_params)
    metrics = []
    for name in ("whole", "cut"):
        store = Checkpoints(tmp_path / name / "checkpoints", read_only=True)
        metrics.append(store.metrics(3))
        store.close()
    assert metrics[0] == metrics[1]


@pytest.mark.slow
def test_a_checkpoint_by_time_is_not_the_best_and_resumes_to_the_same_bits(micro_config, tmp_path, monkeypatch):
    micro_config.use_adversarial = False
    micro_config.num_steps, micro_config.checkpoints_kept = 6, 1
    micro_config.validate_every = micro_config.checkpoint_every = 2
    whole = train.train(micro_config, tmp_path / "whole")
    micro_config.checkpoint_every_minutes = 1e-9  # after every step that is not another checkpoint's
    real = Loop.save

    def stop(self, state, done, metrics):
        if done == 6:  # after step 5 was saved
            self._session.checkpoints.wait()
            raise KeyboardInterrupt
        real(self, state, done, metrics)

    monkeypatch.setattr(Loop, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train.train(micro_config, tmp_path / "cut")
    monkeypatch.undo()
    store = Checkpoints(tmp_path / "cut" / "checkpoints", read_only=True)
    best = store.best()
    assert best[0] in (2, 4)
    assert store.steps() == sorted({best[0], 4, 5})
    assert store.metrics(5) == {}
    store.close()
    _assert_same_state(train.train(micro_config, tmp_path / "cut"), whole)
    stores = [Checkpoints(tmp_path / name / "checkpoints", read_only=True) for name in ("whole", "cut")]
    assert stores[0].best() == stores[1].best()
    assert stores[0].metrics(6) == stores[1].metrics(6)


@pytest.mark.slow
def test_a_run_accounts_for_its_time_and_profiles_its_steps(micro_config, tmp_path, capsys):
    micro_config.use_adversarial = False
    micro_config.num_steps, micro_config.validate_every, micro_config.checkpoint_every = 20, 20, 20
    began = time.monotonic()
    train.train(micro_config, tmp_path, peak_flops=1e12, profile_steps=(12, 15))
    wall = time.monotonic() - began
    (session,) = sessions.read(tmp_path)
    assert (session["first_step"], session["last_step"], session["repeated_steps"]) == (0, 20, 0)
    assert all(seconds >= 0 for seconds in session["seconds"].values())
    assert session["seconds"]["compiling"] > 0
    assert wall - 2 < sum(session["seconds"].values()) < wall
    printed = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("goodput ") for line in printed) == 1
    assert f"a profile of steps 13 to 15 is in {tmp_path / 'plugins'}" in printed
    assert len(list((tmp_path / "plugins" / "profile").rglob("*.xplane.pb"))) == 1
    found = history.read(tmp_path).scalars
    speed, audio, share = (
        found[f"perf/{name}"][1][-1] for name in ("steps_per_second", "audio_seconds_per_second", "share_of_peak_flops")
    )
    assert audio == pytest.approx(speed * 4 * 1024 / 44100)
    assert 0 < share < 1
    assert found["perf/goodput"][0][-1] == 20
    assert found["time/steps"][1][-1] == pytest.approx(session["seconds"]["steps"], abs=1.0)


def test_a_second_run_on_one_workdir_fails(micro_config, trained_run, tmp_path):
    """The second run fails before it changes anything, in particular a checkpoint being written."""
    workdir = shutil.copytree(trained_run[0], tmp_path / "run")
    unfinished = workdir / "checkpoints" / "9.orbax-checkpoint-tmp"
    unfinished.mkdir()
    lock = WorkdirLock(workdir)
    lock.acquire()
    before = sorted(workdir.rglob("*"))
    with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()} on "):
        train.train(micro_config, workdir)
    assert sorted(workdir.rglob("*")) == before
    lock.release()
    micro_config.kl.weight = 0.5
    with pytest.raises(ConfigError, match="contains a run of another config"):
        train.train(micro_config, workdir)
    assert unfinished.is_dir()


@pytest.mark.slow
def test_a_workdir_without_its_config_is_known_by_its_checkpoints(micro_config, trained_run, tmp_path):
    workdir = shutil.copytree(trained_run[0], tmp_path / "run")
    (workdir / "config.json").unlink()
    micro_config.kl.weight = 0.5
    differs = r"contains a run of another config:\n  kl.weight: 0.0001 -> 0.5\nuse another"
    with pytest.raises(ConfigError, match=differs):
        train.train(micro_config, workdir)
    micro_config.kl.weight = 1e-4
    train.train(micro_config, workdir)
    assert (workdir / "config.json").exists()


@pytest.mark.slow
def test_a_workdir_that_is_deleted_meanwhile_is_an_error(micro_config, tmp_path, monkeypatch):
    micro_config.use_adversarial = False
    real = Validation.validate

    def delete(self, state, at):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        return real(self, state, at)

    monkeypatch.setattr(Validation, "validate", delete)
    with pytest.raises(TrainingError, match=r"run \(or its .*\) was deleted or moved while this run was writing to it"):
        train.train(micro_config, tmp_path / "run")


@pytest.mark.slow
def test_the_best_is_one_that_is_on_disk(micro_config, tmp_path, monkeypatch, capsys):
    micro_config.use_adversarial = False
    micro_config.num_steps, micro_config.validate_every, micro_config.checkpoint_every = 4, 1, 2
    losses_by_step = {0: 1.0, 1: 2.0, 2: 5.0, 3: 3.0, 4: 6.0}
    real = Validation.validate

    def validate(self, state, at):
        return {**real(self, state, at), "total_loss": losses_by_step[at]}

    monkeypatch.setattr(Validation, "validate", validate)
    train.train(micro_config, tmp_path / "run")
    assert "val/total_loss 6.0000 (best 5.0000, of checkpoint 2)" in capsys.readouterr().out
    store = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    assert store.best() == (2, 5.0)
    assert store.metrics(4)["best_total_loss"] == 5.0
    # A fine-tuning run that only gets worse: its initial model is the best, and is kept.
    next_config = ml_collections.ConfigDict(micro_config)
    next_config.num_steps, next_config.init_from = 6, str(tmp_path / "run")
    losses_by_step |= {5: 7.0, 6: 8.0}
    train.train(next_config, tmp_path / "next")
    assert "val/total_loss 8.0000 (best 6.0000, of checkpoint 4)" in capsys.readouterr().out
    assert Checkpoints(tmp_path / "next" / "checkpoints", read_only=True).steps() == [4, 6]


@pytest.mark.slow
def test_early_stopping_finishes_a_run_and_a_resumed_one_at_the_same_step(micro_config, tmp_path, monkeypatch, capsys):
    micro_config.use_adversarial = False
    micro_config.num_steps, micro_config.validate_every, micro_config.checkpoint_every = 7, 1, 2
    micro_config.best_metric = micro_config.early_stopping.metric = "mel"
    micro_config.early_stopping.patience = 2
    values = [5.0, 4.0, 3.5, 3.6, 3.7, 3.0, 2.0, 1.0]
    real, real_save, exported = Validation.validate, Loop.save, []

    class Taking(Writer):
        takes_models = True

        def model(self, folder):
            exported.append(saved_model.open_model(folder))

    monkeypatch.setattr(Validation, "validate", lambda self, state, at: {**real(self, state, at), "mel": values[at]})
    monkeypatch.setattr(recorder, "open_writers", lambda *_: Writers([Taking()]))
    whole = train.train(micro_config, tmp_path / "whole")
    printed = capsys.readouterr().out
    assert "stopping early: val/mel has not improved in 2 validations (best 3.5000, at step 2)" in printed
    assert "done: step 4, val/total_loss " in printed
    assert "(best mel 3.5000, of checkpoint 2)" in printed
    (best,) = exported
    assert (best.global_step, best.metadata["mel"], best.metadata["best_mel"]) == (2, 3.5, 3.5)
    assert best.metadata["total_loss"] > 0

    def stop(self, state, done, metrics):
        if done == 4:  # after the checkpoint of step 2, and a validation without an improvement
            self._session.checkpoints.wait()
            raise KeyboardInterrupt
        real_save(self, state, done, metrics)

    monkeypatch.setattr(Loop, "save", stop)
    with pytest.raises(KeyboardInterrupt):
        train.train(micro_config, tmp_path / "cut")
    monkeypatch.setattr(Loop, "save", real_save)
    for _ in range(2):  # the second time, it has finished already
        _assert_same_state(train.train(micro_config, tmp_path / "cut"), whole)
        assert "done: step 4, " in capsys.readouterr().out
    micro_config.early_stopping.patience = 0
    assert train.train(micro_config, tmp_path / "cut").step == 7


@pytest.mark.slow
def test_two_runs_of_one_seed_have_the_same_bits_and_record_what_they_ran(micro_config, trained_run, tmp_path):
    _assert_same_state(train.train(micro_config, tmp_path), trained_run[2])
    (session,) = sessions.read(tmp_path)
    assert session["versions"]["jax"] == jax.__version__
    assert session["command"] == shlex.join(sys.orig_argv)


@pytest.mark.slow
def test_samples_of_a_workdir_inside_the_data_are_no_data(micro_config, audio_folder):
    micro_config.use_adversarial = False
    micro_config.data.root = str(audio_folder)
    train.train(micro_config, audio_folder / "run")
    assert list((audio_folder / "run" / "samples").rglob("*.wav"))
    kept = [Path(record) for record in _scanned(micro_config, audio_folder / "run")]
    assert not [path for path in kept if "run" in path.parts]


def _scanned(config, workdir):
    data = pipeline.open_data(config.data, batch_size=4, seed=0, leave_out=(workdir,))
    return [track.audio.path for track in (*data.catalog.train, *data.catalog.validation)]


@pytest.mark.slow
def test_every_step_of_a_resumed_run_is_seen_once(micro_config, tmp_path, monkeypatch):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    micro_config.use_adversarial = False
    micro_config.num_steps = 2
    real, calls = Loop.save, []

    def stop(self, state, done, metrics):
        calls.append(done)
        if len(calls) in (1, 3):  # killed before the first checkpoint, then after it
            raise KeyboardInterrupt
        real(self, state, done, metrics)

    monkeypatch.setattr(Loop, "save", stop)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            train.train(micro_config, tmp_path)
        time.sleep(1.1)  # event files are distinguished and ordered by their time in seconds
    train.train(micro_config, tmp_path)
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert [event.step for event in events.Scalars("val/total_loss")] == [0, 1, 2]
    assert [event.step for event in events.Scalars("train/total_g_loss")] == [1]
    assert [event.step for event in events.Scalars("val/best_total_loss")] == [1, 2]


def test_another_config_is_refused_in_the_same_workdir(micro_config, trained_run):
    micro_config.kl.weight = 0.5
    differs = r"contains a run of another config:\n  kl.weight: 0.0001 -> 0.5\nuse another"
    with pytest.raises(ConfigError, match=differs):
        train.train(micro_config, trained_run[0])


@pytest.mark.slow
def test_init_from_resumes_in_a_new_workdir(micro_config, trained_run, tmp_path, capsys):
    workdir, _, first = trained_run
    micro_config.num_steps = 4
    micro_config.init_from = str(workdir)
    micro_config.discriminator.mpd_channels = (3,)
    taken = train.train(micro_config, tmp_path / "second")
    assert taken.step == 4
    samples = {path.name for path in (tmp_path / "second" / "samples").iterdir()}
    assert samples == {"step_00000002", "step_00000004"}  # those of the model it starts from come first
    assert int(taken.opt_state[1].count) == int(first.opt_state[1].count) + 2
    out = capsys.readouterr()
    for name in ("discriminator_params", "discriminator_opt_state"):
        assert f"{name} does not fit, and keeps its initial value" in out.out + out.err


@pytest.mark.slow
def test_a_loss_that_is_not_finite_ends_the_run_with_advice(micro_config, tmp_path):
    micro_config.optimizer.learning_rate = 1e30
    micro_config.use_adversarial = False
    micro_config.num_steps = 20
    micro_config.safety.max_rollbacks = 1
    advice = (
        r"(?s)val/total_loss became .* at step 1, and the run was rolled back once already\n.*"
        "try: a lower config.optimizer"
    )
    with pytest.raises(TrainingError, match=advice):
        train.train(micro_config, tmp_path)


@pytest.mark.slow
def test_no_adversarial_builds_no_discriminator(micro_config, tmp_path):
    micro_config.use_adversarial = False
    state = train.train(micro_config, tmp_path)
    assert state.discriminator_params is None
    assert state.discriminator_opt_state is None


def _command(workdir, *flags):
    return [
        sys.executable, str(ROOT / "scripts" / "train.py"), f"--config={ROOT}/configs/tiny.py:no_adversarial",
        f"--workdir={workdir}", "--config.model.base_channels=4", "--config.model.channel_mults=(1,)",
        "--config.model.strides=(8,)", "--config.model.latent_dim=4", "--config.losses.stft.fft_sizes=(64,)",
        "--config.losses.mel.fft_sizes=(256,)", "--config.losses.mel.n_mels=(8,)", "--config.data.crop_length=512",
        "--config.num_steps=40", "--config.checkpoint_every=20", "--config.validate_every=20",
        "--config.data.num_samples=1", "--config.data.validation_crops=4", *flags,
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_process_resumes_to_the_same_bits(tmp_path):
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen(_command(tmp_path / "cut"), env=environment, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 600
            while not (tmp_path / "cut" / "checkpoints" / "20").exists() and process.poll() is None:
                assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
    for name in ("cut", "whole"):
        subprocess.run(_command(tmp_path / name), env=environment, check=True, capture_output=True)
    contents = []
    for name in ("cut", "whole"):
        store = Checkpoints(tmp_path / name / "checkpoints", read_only=True)
        contents.append((store._run(40)["arrays"], store.metrics(40)))
        store.close()
    assert contents[0] == contents[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.model.latent_dimm=3", "config has no key 'model.latent_dimm'; did you mean 'model.latent_dim'"),
        pytest.param(
            "--config.latent_dim=3",
            "config has no key 'latent_dim'; did you mean 'model.latent_dim'",
            marks=pytest.mark.slow,
        ),
        ("--config.data.root=/no/such/folder", "config.data.root=/no/such/folder: there is no such folder"),
        pytest.param("--config.data.crop_length=500", "not a multiple of the model's hop of 8", marks=pytest.mark.slow),
        pytest.param("--workdir=/proc/nope", "--workdir=/proc/nope cannot be written to (", marks=pytest.mark.slow),
    ],
)
def test_the_command_ends_with_one_clear_line(tmp_path, flag, message):
    result = subprocess.run(_command(tmp_path, flag), capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert message in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_the_command_accepts_the_old_flat_keys(tmp_path):
    flags = ("--config.adversarial_warmup_steps=7", "--config.num_steps=1")
    result = subprocess.run(_command(tmp_path, *flags), capture_output=True, text=True, check=True)
    assert "config.adversarial_warmup_steps is deprecated; use config.adversarial.warmup_steps" in result.stderr
    assert json.loads((tmp_path / "config.json").read_text())["adversarial"]["warmup_steps"] == 7
