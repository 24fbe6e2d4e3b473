"""A workdir in a bucket, on a real S3 server on this machine: whole runs, kills, damage, two runs at once."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
import s3

from audiovae_jax import Codec, load_model, save_model
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import CheckpointError, ConfigError, TrainingError
from audiovae_jax.inference import inspection
from audiovae_jax.persistence import init_source
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import start, train, workdir_lock
from audiovae_jax.run.bucket_lock import BucketLock
from audiovae_jax.run.tracking.json_lines import JsonLines
from audiovae_jax.storage import bucket_path
from audiovae_jax.storage.bucket_path import BucketPath

ROOT = Path(__file__).resolve().parents[2]


def _assert_same_state(a, b):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


@pytest.mark.slow
def test_a_run_in_a_bucket_leaves_what_one_on_disk_does(bucket, micro_config, trained_run, tmp_path, capsys):
    on_disk, _, state = trained_run
    workdir = bucket / "runs" / "one"
    _assert_same_state(train.train(micro_config, str(workdir)), state)
    files = workdir.files()

    def names(paths):
        return sorted(
            name for name in paths if name.startswith(("samples/", "config.json", "metrics.jsonl", "bad_files"))
        )

    assert names(files) == names(path.relative_to(on_disk).as_posix() for path in on_disk.rglob("*") if path.is_file())
    assert (workdir / "config.json").read_text() == (on_disk / "config.json").read_text()
    assert any(name.startswith("events.out.tfevents.") and size > 1000 for name, size in files.items())
    assert not [name for name in files if "lock" in name or "tmp" in name]
    there, here = (Checkpoints(folder / "checkpoints", read_only=True) for folder in (workdir, on_disk))
    assert there.steps() == here.steps()
    assert there._run(2) == here._run(2)


def test_metrics_in_a_bucket_continue_where_they_stopped(bucket):
    for first, last in ((0, 4), (2, 6)):
        lines = JsonLines(bucket / "run", first, pytest.fail)
        for step in range(first, last):
            lines.scalars({"x": float(first)}, step)
        lines.close(True)
    records = [json.loads(line) for line in (bucket / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(record["step"], record["scalars"]["x"]) for record in records] == [
        (0, 0), (1, 0), (2, 2), (3, 2), (4, 2), (5, 2),
    ]  # fmt: skip


@pytest.mark.slow
def test_a_damaged_checkpoint_in_a_bucket_is_set_aside(bucket, micro_config, trained_run, capsys):
    on_disk, _, state = trained_run
    workdir = bucket / "run"
    workdir.upload(on_disk)
    files = workdir.files()
    # First with no steps left, then with a damaged newest checkpoint.
    _assert_same_state(train.train(micro_config, workdir), state)
    path = workdir / "checkpoints" / "2" / "run" / "metadata"
    damaged = path.read_text().replace('"step": 2', '"step": 3')
    path.write_text(damaged)
    _assert_same_state(train.train(micro_config, workdir), state)
    assert "checkpoints/2 is damaged: run/metadata does not match its checksum" in capsys.readouterr().out
    assert (workdir / "damaged_checkpoints" / "2" / "run" / "metadata").read_text() == damaged
    assert (workdir / "damaged_checkpoints" / "2").files().keys() == {
        name.removeprefix("checkpoints/2/") for name in files if name.startswith("checkpoints/2/")
    }


@pytest.mark.slow
def test_models_are_loaded_by_their_url(bucket, trained_run, tmp_path):
    on_disk, _, state = trained_run
    (bucket / "run").upload(on_disk)  # as `aws s3 sync` writes it
    model, variables = load_model(f"{bucket}/run", step=2)
    _assert_same_state(variables, state.variables)
    codec = Codec.load(f"{bucket}/run/checkpoints/2")
    assert codec.sample_rate == 44100
    description = inspection.inspect_model(f"{bucket}/run")
    assert description["bytes"] == inspection.inspect_model(str(on_disk))["bytes"]
    save_model(model, variables, tmp_path / "saved", sample_rate=44100)
    (bucket / "saved").upload(tmp_path / "saved")
    _assert_same_state(load_model(f"{bucket}/saved")[1], variables)
    for name in ("run", "run/checkpoints/2", "saved"):
        described = init_source.describe(f"{bucket}/{name}")
        assert (described.model["latent_dim"], described.sample_rate) == (4, 44100)
        found = init_source.read(f"{bucket}/{name}", ("params", "latent_statistics", "discriminator_params"))
        _assert_same_state(found.parts["params"], state.params)
        assert ("discriminator_params" in found.parts) == (name != "saved")
    with pytest.raises(CheckpointError, match="s3://.*/nothing: there is no such file or folder"):
        load_model(f"{bucket}/nothing")
    with pytest.raises(CheckpointError, match="http://x/run: only s3:// and gs:// URLs"):
        load_model("http://x/run")


def test_an_incompletely_copied_checkpoint_is_ignored(bucket, trained_run):
    on_disk, _, _ = trained_run
    workdir = bucket / "run"
    workdir.upload(on_disk)
    assert Checkpoints(workdir / "checkpoints").steps() == [1, 2]
    (workdir / "checkpoints" / "2" / "commit_success.txt").unlink()
    store = Checkpoints(workdir / "checkpoints")
    assert store.steps() == [1]
    assert load_model(str(workdir))[1].keys() == {"params", "latent_statistics"}


def test_only_the_last_and_the_best_stay_in_the_bucket(bucket):
    state = train.TrainState(
        step=jax.numpy.int32(0), params={"a": jax.numpy.ones(3)}, latent_statistics={}, opt_state=()
    )
    store = Checkpoints(bucket / "checkpoints", kept=2)
    for step, loss in enumerate([2.0, 1.0, float("nan"), 4.0, 5.0]):
        store.save(state, step=step, config={}, data={}, metrics={"total_loss": loss})
    store.close()
    assert store.steps() == [1, 3, 4]
    assert {name.split("/")[0] for name in (bucket / "checkpoints").files()} == {"1", "3", "4"}


def test_an_unreachable_bucket_loses_a_checkpoint_with_a_warning(s3_server, monkeypatch, bucket):
    proxy = s3.Proxy(s3_server.port)
    s3.use(monkeypatch, proxy.port)
    bucket_path._filesystem.cache_clear()
    state = train.TrainState(step=jax.numpy.int32(0), params={}, latent_statistics={}, opt_state=())
    directory = BucketPath(f"{bucket}/checkpoints", patience=0.5)
    store = Checkpoints(directory)
    store.save(state, step=1, config={}, data={}, metrics={"total_loss": 1.0})
    store.wait()
    proxy.cut()
    # The checkpoints cannot be listed either. The message reports this.
    with pytest.raises(CheckpointError, match=r"no answer for 0.5 s"):
        store.save(state, step=2, config={}, data={}, metrics={"total_loss": 1.0})
    with pytest.raises(CheckpointError, match=r"checkpoints/1 cannot be read: no answer for"):
        store.restore(jax.eval_shape(lambda: state), mesh.replicated(mesh.make_mesh()), step=1)
    proxy.restore()
    store.save(state, step=3, config={}, data={}, metrics={"total_loss": 1.0})
    store.close()
    assert store.steps() == [1, 3]
    assert not (bucket / "damaged_checkpoints").exists()


def test_the_lock_works_in_a_bucket(bucket, monkeypatch):
    workdir = bucket / "run"
    first, second = BucketLock(workdir), BucketLock(workdir)
    assert first.acquire() is None
    with pytest.raises(ConfigError, match=rf"s3://.*/run is in use by process {os.getpid()} on \S+, started 20"):
        second.acquire()
    first.require_held()
    holder = json.loads((workdir / "run.lock").read_text())
    (workdir / "run.lock").write_text(json.dumps({**holder, "token": "another", "host": "thief"}))
    with pytest.raises(TrainingError, match=r"was taken over by process \d+ on thief"):
        first.require_held()
    first.release()
    assert (workdir / "run.lock").exists()
    # A run on another host counts as dead after some time without a heartbeat.
    (workdir / "run.lock").write_text(json.dumps({**holder, "system": "elsewhere"}))
    with pytest.raises(ConfigError, match=r"wait 60 s or delete s3://.*/run/run.lock"):
        second.acquire()
    monkeypatch.setattr(workdir_lock, "_STALE", -1.0)
    assert second.acquire().token == holder["token"]
    second.require_held()
    second.release()
    assert workdir.files() == {}


def test_the_faster_of_two_takeovers_wins_in_a_bucket(bucket, monkeypatch):
    workdir = bucket / "run"
    (workdir / "run.lock").write_text("{}")
    monkeypatch.setattr(workdir_lock, "_STALE", -1.0)
    winner, loser = BucketLock(workdir), BucketLock(workdir)
    real = BucketLock._silence

    def late(self):
        monkeypatch.setattr(BucketLock, "_silence", real)
        winner.acquire()
        return 1.0

    monkeypatch.setattr(BucketLock, "_silence", late)
    with pytest.raises(ConfigError, match="is being locked by another run at this moment"):
        loser.acquire()
    winner.require_held()
    winner.release()


def test_the_heartbeat_is_felt_in_a_bucket(bucket, monkeypatch):
    monkeypatch.setattr(workdir_lock, "_HEARTBEAT", 0.01)
    lock = BucketLock(bucket / "run")
    lock.acquire()
    first = (bucket / "run" / "run.lock").version()
    deadline = time.monotonic() + 30
    while (bucket / "run" / "run.lock").version() == first:
        assert time.monotonic() < deadline
    (bucket / "run" / "run.lock").unlink()
    lock._thread.join(30)
    with pytest.raises(TrainingError, match=r"run \(or its .*\) was deleted or moved while this run was writing to it"):
        lock.check()
    lock.release()


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("s3://no-such-bucket/run", r"cannot be written to \(there is no such file or bucket .*; give another"),
        ("https://host/run", "only s3:// and gs:// URLs can be written to"),
    ],
)
def test_an_invalid_workdir_is_an_immediate_error(bucket, micro_config, workdir, message):
    with pytest.raises(ConfigError, match=f"--workdir={workdir}.*{message}"):
        train.train(micro_config, workdir)


def test_a_missing_package_is_named(monkeypatch, micro_config):
    registry = pytest.importorskip("fsspec.registry")
    monkeypatch.delitem(registry._registry, "s3", raising=False)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    bucket_path._filesystem.cache_clear()
    with pytest.raises(ConfigError, match=r"cannot be written to \(s3:// needs a package .*pip install .*\[s3\]"):
        train.train(micro_config, "s3://bucket/run")


@pytest.mark.slow
def test_samples_of_a_workdir_inside_the_data_are_no_data_in_a_bucket(bucket, micro_config, audio_folder):
    (bucket / "audio").upload(audio_folder)
    micro_config.use_adversarial = False
    micro_config.data.root = f"{bucket}/audio"
    train.train(micro_config, bucket / "audio" / "run")
    data = start.pipeline.open_data(
        micro_config.data, batch_size=4, seed=0, leave_out=(bucket / "audio" / "run" / "samples",)
    )
    names = [track.audio.name for track in (*data.catalog.train, *data.catalog.validation)]
    assert len(names) == 3
    assert [name for name in (bucket / "audio" / "run").files() if name.endswith(".wav")]


def _command(workdir):
    return [
        sys.executable, str(ROOT / "scripts" / "train.py"), f"--config={ROOT}/configs/tiny.py:no_adversarial",
        f"--workdir={workdir}", "--config.model.base_channels=4", "--config.model.channel_mults=(1,)",
        "--config.model.strides=(8,)", "--config.model.latent_dim=4", "--config.losses.stft.fft_sizes=(64,)",
        "--config.losses.mel.fft_sizes=(256,)", "--config.losses.mel.n_mels=(8,)", "--config.data.crop_length=512",
        "--config.num_steps=60", "--config.checkpoint_every=20", "--config.validate_every=20",
        "--config.data.num_samples=1", "--config.data.validation_crops=4",
    ]  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_in_a_bucket_resumes_to_the_bits_of_one_on_disk(bucket, tmp_path):
    """Killed three times: during the upload of the first checkpoint, after it, and later."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    workdir = bucket / "run"
    for until in ("checkpoints/20/", "checkpoints/20/commit_success.txt", "checkpoints/40/"):
        with open(tmp_path / "log", "w") as log:
            process = subprocess.Popen(_command(workdir), env=environment, stdout=log, stderr=log)
            try:
                deadline = time.monotonic() + 600
                while not any(name.startswith(until) for name in workdir.files()) and process.poll() is None:
                    assert time.monotonic() < deadline, (tmp_path / "log").read_text()
                    time.sleep(0.01)
            finally:
                process.send_signal(signal.SIGKILL)
                process.wait()
    said = subprocess.run(_command(workdir), env=environment, check=True, capture_output=True, text=True)
    assert "from a run that was killed" in said.stdout
    assert "resuming from step" in said.stdout
    subprocess.run(_command(tmp_path / "whole"), env=environment, check=True, capture_output=True)
    stores = [Checkpoints(place / "checkpoints", read_only=True) for place in (workdir, tmp_path / "whole")]
    assert stores[0].steps() == stores[1].steps()
    assert stores[0]._run(60)["arrays"] == stores[1]._run(60)["arrays"]
    assert stores[0].metrics(60) == stores[1].metrics(60)
    _assert_same_state(*(store.parts(60, ("params", "opt_state")) for store in stores))
