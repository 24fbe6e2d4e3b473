"""Learning beside the torch reference, on a small run."""

import json

import numpy as np
import pytest

from audiovae_jax.errors import ConfigError
from audiovae_jax.performance.benchmark import command

OPTIONS = {"repeats": 1, "warmup": 0, "profiled": False, "seconds": 0.1, "json_path": None}


@pytest.fixture
def short_config(micro_config):
    micro_config.num_steps = 3
    micro_config.kl.weight = 0.01
    micro_config.kl.warmup_steps = 2
    micro_config.optimizer.learning_rate = 1e-2
    micro_config.optimizer.final_learning_rate = 1e-3
    micro_config.use_adversarial = False
    return micro_config


@pytest.mark.slow
def test_three_steps_have_torchs_curves(short_config, tmp_path):
    pytest.importorskip("torch")
    files = {"json_path": str(tmp_path / "report.json"), "picture": str(tmp_path / "curves.svg")}
    report = command.run("learning", short_config, against=["torch"], **OPTIONS | files)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    curves = report["curves"]
    assert curves["step"] == [0, 1, 2, 3]
    assert set(curves["ours"]) == {"stft", "mel", "waveform_l1", "si_sdr_db"}
    for metric, ours in curves["ours"].items():
        np.testing.assert_allclose(ours, curves["torch"][metric], rtol=1e-3)
        assert abs(ours[-1] / ours[0] - 1) > 0.01  # far more than the bound
    assert report["final"]["mel_ratio"] == curves["ours"]["mel"][-1] / curves["torch"]["mel"][-1]
    lines = command.lines(report)
    first = next(iter(curves["ours"]))
    assert lines[-1].split()[:3] == ["3", *(f"{curves[name][first][-1]:.4f}" for name in ("ours", "torch"))]
    assert (tmp_path / "curves.svg").read_text().count("si_sdr_db")


@pytest.mark.slow
def test_adversarial_steps_after_a_warm_up_have_torchs_curves(short_config):
    pytest.importorskip("torch")
    short_config.use_adversarial = True
    short_config.adversarial.warmup_steps = 1
    short_config.adversarial.adversarial_weight = 10.0
    short_config.adversarial.feature_matching_weight = 100.0
    short_config.optimizer.learning_rate = 3e-3  # at which rounding grows slowly
    short_config.discriminator_optimizer.learning_rate = 1e-2
    curves = command.run("learning", short_config, against=["torch"], **OPTIONS)["curves"]
    for metric, ours in curves["ours"].items():
        # A discriminator that is not updated changes each by 5e-4.
        np.testing.assert_allclose(ours, curves["torch"][metric], rtol=2e-5)


def test_what_torch_cannot_follow_is_refused(short_config):
    pytest.importorskip("torch")
    with pytest.raises(ConfigError, match="--against=torch_compile is not for learning; use torch"):
        command.run("learning", short_config, against=["torch_compile"], **OPTIONS)
    with pytest.raises(ConfigError, match=r"--picture=curves.gif must end in .svg or .png"):
        command.run("learning", short_config, against=["torch"], picture="curves.gif", **OPTIONS)
    short_config.optimizer.schedule = "constant"
    with pytest.raises(ConfigError, match="supports only config.optimizer.schedule='cosine', not 'constant'"):
        command.run("learning", short_config, against=["torch"], **OPTIONS)
