"""A healthy set-up, and broken ones as users have them."""

import json

import jax
import pytest

from audiovae_jax.config import configuration
from audiovae_jax.planning import doctor
from audiovae_jax.planning.compiling import StepCompiler
from audiovae_jax.planning.doctor import FAILED, OK, SKIPPED


@pytest.fixture
def small(micro_config):
    micro_config.use_adversarial = False
    return micro_config


def _examine(config, workdir, **options):
    checks = doctor.examine(config, workdir, compile_step=False, **options)
    return {check.name: check for check in checks}


def _failed(checks):
    return [name for name, check in checks.items() if check.status == FAILED]


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_healthy_machine(micro_config, tmp_path, audio_folder, whole):
    micro_config.data.root = str(audio_folder)
    micro_config.use_adversarial = whole
    checks = doctor.examine(micro_config, tmp_path / "run", compile_step=whole)
    statuses = dict.fromkeys(
        ("devices", "config", "data", "processes", "memory", "disk", "checkpoint", "workdir"), OK
    ) | ({} if whole else {"memory": SKIPPED})
    assert {check.name: check.status for check in checks} == statuses
    found = {check.name: check.result for check in checks}
    assert f"{jax.device_count()} x cpu" in found["devices"]
    assert "2 to train on" in found["data"]
    assert "hop 8, crops of 1024 samples, 2 channel(s), 44100 Hz" in found["config"]
    assert "checksums equal" in found["checkpoint"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["audio"]  # nothing is left behind
    assert doctor.lines(checks)[-1] == "ready: nothing was found that would fail"


def test_no_data(small, tmp_path):
    small.data.root = str(tmp_path / "nowhere")
    checks = _examine(small, tmp_path / "run")
    assert _failed(checks) == ["data"]
    assert "there is no such folder" in checks["data"].result


def test_a_disk_that_is_too_small(small, tmp_path):
    checks = _examine(small, tmp_path / "run", free=lambda path: 1000)
    assert _failed(checks) == ["disk"]
    assert checks["disk"].remedy.startswith("make ")
    assert checks["checkpoint"].status == SKIPPED


def test_a_batch_that_does_not_split(small, tmp_path):
    small.batch_size = 6
    checks = _examine(small, tmp_path / "run")
    assert _failed(checks) == ["config"]
    assert checks["config"].result == "config.batch_size=6 cannot be split over 4 devices"
    assert checks["config"].remedy == "use 4 or 8"
    assert checks["data"].status == SKIPPED
    lines = doctor.lines(list(checks.values()))
    assert "-> use 4 or 8" in "\n".join(lines)
    assert lines[-1] == "would fail: config"


def test_rates_that_differ(small, tmp_path):
    small.losses.mel.sample_rate = 48000
    checks = _examine(small, tmp_path / "run")
    assert _failed(checks) == ["config"]
    assert checks["config"].result == "config.losses.mel.sample_rate=48000, but config.data.sample_rate=44100"


def test_a_workdir_that_cannot_be_written_to(small, tmp_path):
    checks = _examine(small, doctor.Path("/proc/nope"), free=lambda path: 10**12)
    assert _failed(checks) == ["checkpoint"]
    assert checks["checkpoint"].result.startswith("/proc cannot be written to (")
    (tmp_path / "run").write_text("a file")
    assert _failed(_examine(small, tmp_path / "run")) == ["disk"]


def test_a_workdir_of_another_config(small, tmp_path):
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    other = json.loads(configuration.to_json(small))
    other["kl"]["weight"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(other))
    checks = _examine(small, tmp_path)
    assert _failed(checks) == ["workdir"]
    assert "kl.weight: 0.5 -> 0.0001" in checks["workdir"].result + checks["workdir"].remedy


@pytest.mark.slow
def test_a_step_that_does_not_fit(small, tmp_path, monkeypatch):
    real = StepCompiler.__init__

    def on_a_small_device(self, *args):
        real(self, *args)
        self.devices = doctor.dataclasses.replace(self.devices, usable_bytes=100_000)

    monkeypatch.setattr(StepCompiler, "__init__", on_a_small_device)
    checks = {check.name: check for check in doctor.examine(small, tmp_path / "run")}
    assert _failed(checks) == ["memory"]
    assert "of 100 kB (planned: " in checks["memory"].result
    assert checks["memory"].remedy.startswith("a smaller config.batch_size")
