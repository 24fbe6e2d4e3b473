"""Signals and the clock, in one process."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import Run

from audiovae_jax.distributed import stopping
from audiovae_jax.distributed.group import Group
from audiovae_jax.errors import ConfigError
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import start, train

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("text", "seconds"), [("11h50m", 42600), ("90s", 90), ("2h", 7200), ("1d", 86400)])
def test_times(text, seconds):
    assert stopping.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "1.5h", "50m11h", "soon"])
def test_invalid_durations(text):
    with pytest.raises(ConfigError, match=f"--stop_after={text} must be a time such as 11h50m"):
        stopping.seconds(text)


def _wait(condition):
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize(("number", "name"), [(signal.SIGTERM, "SIGTERM"), (signal.SIGINT, "Ctrl-C")])
def test_a_signal_asks_and_its_handlers_are_given_back(number, name, capfd):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    asked = []
    with stopping.requests(asked.append, None, at_once=lambda: None):
        os.kill(os.getpid(), number)
        _wait(lambda: asked)
    assert asked == [name]
    assert f"{name}: finishing this step, then saving" in capfd.readouterr().err
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert signal.set_wakeup_fd(-1) == -1


def test_the_clock_asks():
    asked = []
    with stopping.requests(asked.append, 0.05, at_once=lambda: None):
        _wait(lambda: asked)
    assert asked == ["the time of --stop_after"]


def test_a_second_interrupt_ends_it_at_once():
    """Also while the main thread runs code that does not check for signals, like a compilation."""
    code = (
        "import ctypes, os, signal\n"
        "from audiovae_jax.distributed import stopping\n"
        "with stopping.requests(lambda reason: None, None, at_once=lambda: print('let go', flush=True)):\n"
        "    print('ready', flush=True)\n"
        "    ctypes.CDLL(None).sleep(30)\n"
        "    ctypes.CDLL(None).sleep(30)\n"
        "    ctypes.CDLL(None).sleep(30)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "\n"
    assert "press it again to stop at once" in process.stderr.readline()
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "let go\n")
    assert "interrupted; everything saved is complete" in err
    assert time.monotonic() - began < 10


@pytest.mark.slow
def test_a_stopped_run_resumes_as_if_uninterrupted(micro_config, tmp_path, monkeypatch, capsys):
    """The bits, validations and best checkpoint are equal. The checkpoint in between has no loss."""
    micro_config.use_adversarial = False
    micro_config.num_steps, micro_config.validate_every, micro_config.checkpoint_every = 5, 2, 2
    whole = train.train(micro_config, tmp_path / "whole")
    real = Group.stop_reason

    steps = itertools.count()

    def stop(self):
        if next(steps) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            _wait(lambda: real(self))
        return real(self)

    monkeypatch.setattr(Group, "stop_reason", stop)
    capsys.readouterr()
    cut = train.train(micro_config, tmp_path / "cut")
    assert int(cut.step) == 3
    last = capsys.readouterr().out.strip().splitlines()[-1]
    assert last == "stopped at step 3 after SIGTERM: saved; run the same command to resume"
    store = Checkpoints(tmp_path / "cut" / "checkpoints", read_only=True)
    assert store.steps() == [2, 3]
    assert store.best()[0] == 2
    store.close()
    monkeypatch.undo()
    resumed = train.train(micro_config, tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))
    stores = [Checkpoints(tmp_path / name / "checkpoints", read_only=True) for name in ("whole", "cut")]
    assert stores[0].metrics(5) == stores[1].metrics(5)
    assert stores[0].best() == stores[1].best()
    # Stopped before its first step, it has nothing new to save.
    monkeypatch.setattr(start.stopping, "requests", lambda ask, *_, **__: ask("SIGTERM") or contextlib.nullcontext())
    micro_config.validate_every = 1
    assert int(train.train(micro_config, tmp_path / "new").step) == 0
    assert "stopped at step 0 after SIGTERM: nothing to save yet" in capsys.readouterr().out


_SOON = 60  # seconds; the slow step would take 300 to compile


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_a_run_with_nothing_to_save_does_not_wait_for_the_compiler(micro_config, tmp_path, count):
    micro_config.use_adversarial = False
    workdir = tmp_path / "run"
    told = {"slow": False}
    with Run(tmp_path, "run", micro_config, count=count, each={i: told for i in range(count)}) as run:
        for i in range(count):
            run.wait_for("worker: compiling", i, timeout=900)
        run.processes[-1].send_signal(signal.SIGTERM)
        assert run.wait(_SOON) == [0] * count
        by = f"SIGTERM (in process {count - 1} of {count})" if count > 1 else "SIGTERM"
        for i in range(count):
            assert f"stopped at step 0 after {by}: nothing to save yet; run the same command" in run.log(i)
    assert not (workdir / "run.lock").exists()
    with Run(tmp_path, "again", micro_config, count=count, workdir=workdir) as again:
        assert again.finished().record()["step"] == micro_config.num_steps


@pytest.mark.slow
def test_a_run_saves_while_the_step_with_discriminator_compiles(micro_config, tmp_path):
    """It has made steps since its last checkpoint. Resumed, it equals an uninterrupted run."""
    micro_config.num_steps, micro_config.adversarial.warmup_steps = 5, 3
    micro_config.validate_every = micro_config.checkpoint_every = 2
    whole = train.train(micro_config, tmp_path / "whole")
    with Run(tmp_path, "cut", micro_config, count=1, devices=4, each={0: {"slow": True}}) as cut:
        cut.wait_for("worker: compiling", timeout=900)
        cut.processes[0].send_signal(signal.SIGTERM)
        assert cut.wait(_SOON) == [0]
        assert "stopped at step 3 after SIGTERM: saved; run the same command" in cut.log(0)
    store = Checkpoints(tmp_path / "cut" / "checkpoints", read_only=True)
    assert store.steps() == [2, 3]
    store.close()
    resumed = train.train(micro_config, tmp_path / "cut")
    for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(resumed), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_the_command_does_not_wait_for_the_compiler(tmp_path):
    """With a model of realistic size, and XLA itself."""
    line = [sys.executable, "scripts/train.py", "--config=configs/tiny.py", f"--workdir={tmp_path / 'run'}"]
    line += ["--config.data.sample_seconds=0.1", "--config.data.num_samples=1", "--config.data.validation_crops=1"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache")}
    log = tmp_path / "log"
    with open(log, "w") as out:
        process = subprocess.Popen(line, cwd=ROOT, env=environment, stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 900
        while "compiling the step ..." not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(_SOON) == 0
    finally:
        process.kill()
    said = log.read_text()
    assert "stopped at step 0 after SIGTERM: nothing to save yet; run the same command to resume" in said
    assert "compiling the step: " not in said
    assert not (tmp_path / "run" / "run.lock").exists()
