"""Whole runs of two real processes, on loopback."""

import os
import random
import re
import shutil
import time

import ml_collections
import numpy as np
import pytest
from processes import Run

from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run.tracking import sessions
from audiovae_jax.run.workdir_lock import WorkdirLock


def _config(micro_config, num_steps=12, **changes):
    """A config without discriminator, to compile in half the time, and with a rate that does not amplify rounding."""
    config = ml_collections.ConfigDict(micro_config)
    config.use_adversarial = False
    config.num_steps, config.validate_every, config.checkpoint_every, config.sample_every = num_steps, 5, 10, 100
    config.optimizer.learning_rate = config.optimizer.final_learning_rate = 1e-5
    config.update(changes)
    return config


def _last_checkpoint(workdir):
    store = Checkpoints(workdir / "checkpoints", read_only=True)
    step = store.steps()[-1]
    try:
        return step, store._run(step)["arrays"], store.metrics(step)
    finally:
        store.close()


@pytest.mark.slow
def test_one_refused_process_ends_all_with_the_same_words(micro_config, tmp_path):
    workdir = tmp_path / "run"
    lock = WorkdirLock(workdir)
    lock.acquire()
    with Run(tmp_path, "refused", micro_config, workdir=workdir) as run:
        assert run.wait() == [1, 1]
        said = [run.log(i).strip() for i in range(2)]
    lock.release()
    assert said[0] == said[1]
    assert said[0].startswith(f"error: --workdir={workdir} is in use by process ")


@pytest.mark.slow
def test_two_processes_share_a_bucket(micro_config, tmp_path, bucket):
    config = _config(micro_config, checkpoint_every=3)
    with Run(tmp_path, "here", config, devices=1) as here:
        here.finished()
    workdir = str(bucket / "run")
    with Run(tmp_path, "away", config, devices=1, workdir=workdir, each={1: {"stop_at": 5}}) as away:
        away.finished()
        for i in range(2):
            assert "after SIGTERM (in process 1 of 2): saved" in away.log(i), away.log(i)
    with Run(tmp_path, "again", config, devices=1, workdir=workdir) as again:
        again.finished()
    assert again.record()["digests"] == here.record()["digests"] == again.record(1)["digests"]
    store = Checkpoints(bucket / "run" / "checkpoints", read_only=True)
    assert store.steps()[-1] == 12
    store.close()


@pytest.mark.slow
def test_processes_of_different_configs_are_refused(micro_config, tmp_path):
    other = _config(micro_config, validate_every=7)
    with Run(tmp_path, "differ", _config(micro_config), configs={1: other}) as run:
        assert run.wait() == [1, 1]
        for i in range(2):
            assert "error: process 1 of 2 (on " in run.log(i)
            assert "belongs to another run:\n  validate_every: 5 in process 0, 7 there\n" in run.log(i)
    assert not (tmp_path / "differ").exists()


@pytest.mark.slow
def test_other_flags_of_the_compiler_are_refused(micro_config, tmp_path):
    flags = os.environ.get("XLA_FLAGS", "")
    each = {1: {"environment": {"XLA_FLAGS": f"{flags} --xla_dump_to={tmp_path} --xla_cpu_use_onednn=false"}}}
    with Run(tmp_path, "unlike", _config(micro_config), each=each) as run:
        assert run.wait() == [1, 1]
        for i in range(2):
            assert "error: process 1 of 2 (on " in run.log(i)
            told = f"\n  XLA_FLAGS: {flags!r} in process 0, {f'{flags} --xla_cpu_use_onednn=false'.strip()!r} there\n"
            assert f"belongs to another run:{told}" in run.log(i)


@pytest.mark.slow
def test_a_restart_on_other_hosts_finds_the_programs(micro_config, tmp_path):
    """Each process of each start has its own cache folder, as on hosts without a shared home.

    On CPUs only the first process can find entries: the fingerprint of the devices in jax's keys differs.
    """

    def start(name, **settings):
        # A start compiles some small programs twice, so it would find its own.
        environment = {"JAX_COMPILATION_CACHE_DIR": None, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2"}
        homes = [{**environment, "XDG_CACHE_HOME": str(tmp_path / f"{name}{i}")} for i in range(2)]
        each = {i: {"run_cache": True, "environment": homes[i], **settings} for i in range(2)}
        with Run(tmp_path, "run", _config(micro_config), each=each) as run:
            run.finished()
            entries = {path.name for path in (tmp_path / ".xla_cache").glob("jit_mapped*")}  # validation and step
            return entries, run.record()["compilation"]["hits"]

    entries, hits = start("first", stop_at=6)
    assert (len(entries), hits) == (2, 0)
    found, hits = start("second")
    assert found == entries
    assert hits > len(entries)
    assert (tmp_path / ".xla_cache").stat().st_mode & 0o777 == 0o700


@pytest.mark.slow
def test_a_run_that_is_stopped_does_not_wait_for_a_reader(micro_config, tmp_path):
    with Run(tmp_path, "hung", _config(micro_config), count=1, each={0: {"hang_at": 6, "stop_at": 4}}) as run:
        run.wait_for("worker: a read hangs")
        run.wait_for(": saved; run the same command to resume")
        began = time.monotonic()
        assert run.wait(60) == [0]
        assert time.monotonic() - began < 20


@pytest.mark.slow
def test_a_workdir_that_is_not_shared_is_refused(micro_config, tmp_path):
    each = {1: {"workdir": str(tmp_path / "elsewhere")}}
    with Run(tmp_path, "apart", micro_config, each=each) as run:
        assert run.wait() == [1, 1]
        assert "is not the same folder as in process 0" in run.log(0)


@pytest.mark.slow
def test_bad_data_in_one_process_ends_the_other(micro_config, tmp_path):
    with Run(tmp_path, "bad", _config(micro_config), each={1: {"fail_at": 3}}) as run:
        assert run.wait() == [1, 1]
        for i in range(2):
            assert ": songs/a.wav: cannot be read any more" in run.log(i)
            assert "error: process 1 of 2 (on " in run.log(i)


@pytest.mark.slow
def test_two_processes_are_one_run(micro_config, tmp_path):
    """Two processes of two devices against one of four; stopped by a signal to one of them, and resumed."""
    config = _config(micro_config)
    with Run(tmp_path, "one", config, count=1, devices=4) as one:
        one.finished()
    with Run(tmp_path, "two", config) as two:
        two.finished()
    assert one.global_batches() == two.global_batches()
    _assert_near(one, two)
    assert two.record(0)["digests"] == two.record(1)["digests"]

    with Run(tmp_path, "cut", config, each={1: {"stop_at": 2}}) as cut:
        cut.finished()
        said = [[line for line in cut.log(i).splitlines() if line.startswith("stopped at step ")] for i in range(2)]
        stopped = cut.record()["step"]
    assert said[0] == said[1]
    assert stopped < 12
    assert f"stopped at step {stopped} after SIGTERM (in process 1 of 2): saved; run the same command" in said[0][0]
    shutil.copytree(tmp_path / "cut", tmp_path / "elsewhere")
    with Run(tmp_path, "cut", config) as resumed:
        resumed.finished()
    with Run(tmp_path, "elsewhere", config, count=1, devices=2) as elsewhere:
        elsewhere.finished()
    _assert_near(elsewhere, two)
    assert resumed.record()["digests"] == two.record()["digests"]
    assert _last_checkpoint(tmp_path / "cut") == _last_checkpoint(tmp_path / "two")


def _assert_near(run, whole):
    """Check that the losses of a run's steps equal those of `whole` within 1e-6."""
    for step, metrics in run.record()["losses"].items():
        loss = float.fromhex(metrics["train/total_g_loss"])
        other = float.fromhex(whole.record()["losses"][step]["train/total_g_loss"])
        np.testing.assert_allclose(loss, other, rtol=1e-6)


@pytest.mark.slow
def test_the_other_ends_when_one_is_killed(micro_config, tmp_path):
    config = _config(micro_config, num_steps=2000)
    limits = {"join": {"heartbeat_timeout": 4.0}, "train": {"heartbeat_timeout": 4.0}}
    with Run(tmp_path, "killed", config, **limits) as run:
        run.wait_for("worker: step 12")
        run.processes[1].kill()
        assert run.processes[0].wait(120) == 1
        assert "error: process 1 of 2 (on " in run.log(0)
        assert "sent no heartbeat for 4 s" in run.log(0)
    with Run(tmp_path, "killed", config, train={"stop_after": 20}) as again:
        again.finished()
        assert "resuming from step 10" in again.log(0)


@pytest.mark.slow
def test_kills_at_any_moment_change_nothing(micro_config, tmp_path):
    """Also during saves, which happen after every step."""
    config = _config(micro_config, num_steps=60, checkpoint_every=1)
    with Run(tmp_path, "whole", config, count=1) as whole:
        whole.finished()
    moments = random.Random(0)
    for _ in range(3):
        with Run(tmp_path, "cut", config, count=1) as life:
            life.wait_for("worker: step ")
            time.sleep(moments.uniform(0, 0.5))
    with Run(tmp_path, "cut", config, count=1) as last:
        last.finished()
    assert last.record()["digests"] == whole.record()["digests"]
    assert _last_checkpoint(tmp_path / "cut") == _last_checkpoint(tmp_path / "whole")


@pytest.mark.slow
def test_checkpoints_by_time_are_saved_by_all_processes(micro_config, tmp_path):
    config = _config(micro_config, num_steps=30, checkpoint_every=1000)
    with Run(tmp_path, "whole", config, devices=1) as whole:
        whole.finished()
    config.checkpoint_every_minutes = 1e-9
    with Run(tmp_path, "cut", config, devices=1) as cut:
        cut.wait_for("worker: step 20")
    step, _, metrics = _last_checkpoint(tmp_path / "cut")
    assert step > 10
    assert metrics == {}
    reached = sessions.read(tmp_path / "cut")[-1]["last_step"]
    with Run(tmp_path, "cut", config, devices=1) as resumed:
        resumed.finished()
        assert f"resuming from step {step}" in resumed.log(0)
    assert resumed.record()["digests"] == whole.record()["digests"] == resumed.record(1)["digests"]
    assert _last_checkpoint(tmp_path / "cut") == _last_checkpoint(tmp_path / "whole")
    found = sessions.read(tmp_path / "cut")
    assert [session["first_step"] for session in found] == [0, step]
    assert sessions.repeated_steps(found) == [max(0, reached - step), 0]


@pytest.mark.slow
def test_two_processes_begin_with_the_weights_of_another_run(micro_config, trained_run, tmp_path):
    begun = tmp_path / "begun"
    shutil.copytree(trained_run[0], begun)
    best = Checkpoints(begun / "checkpoints", read_only=True).best()[0]
    (begun / "checkpoints" / str(best) / "state" / "manifest.ocdbt").unlink()  # so that all processes skip it
    config = _config(micro_config, num_steps=2, init_from=str(begun), init_weights_only=True)
    with Run(tmp_path, "on", config, devices=1) as run:
        run.finished()
        assert f"restored from {begun} (checkpoint {3 - best}): the step and the optimizers are reset" in run.log(0)
    assert run.record()["digests"] == run.record(1)["digests"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "calls", "phase"),
    [("step", 5, "step"), ("read", 5, "reading"), ("save", 0, "saving"), ("restore", 0, "restoring")],
)
def test_a_process_that_is_stuck_is_named_and_ends_all(micro_config, tmp_path, place, calls, phase):
    limit = 8
    config = _config(micro_config, stuck_timeout=float(limit))
    if place == "restore":
        with Run(tmp_path, "run", config, devices=1) as before:
            before.finished()
    with Run(tmp_path, "stuck", config, devices=1, workdir=tmp_path / "run", each={1: {"hang": (place, calls)}}) as run:
        run.wait_for(f"worker: hangs in a {place}", 1)
        began = time.monotonic()
        assert run.wait(180) == [1, 1]
        # A thread ends a process that does not end in 10 s, or in 60 s if it still writes a checkpoint.
        assert time.monotonic() - began < limit + (90 if place == "save" else 40)
        named = rf"no progress for \d+ s in process 1 of 2 \(on \S+; phase {phase}, step \d+\); waiting for that: pro"
        for i in range(2):
            assert re.search(f"error: {named}", run.log(i)), run.log(i)
            assert re.search(f"stacks of process {i} of 2: {named}", run.log(i)), run.log(i)
            assert "most recent call first" in run.log(i), run.log(i)
        assert "in hanging\n" in run.log(1)  # where it is stuck


@pytest.mark.slow
def test_the_process_whose_data_is_slow_is_named(micro_config, tmp_path):
    config = _config(micro_config, num_steps=110, validate_every=110, checkpoint_every=110)
    with Run(tmp_path, "slow", config, devices=1, each={1: {"slow_reads": 0.3}}) as run:
        run.finished()
        assert re.search(r"warning: \d+% of the time is spent waiting for data in process 1 of 2 \(on ", run.log(0))
