"""The commands on a small run. Tests check what is measured, not how fast it is."""

import importlib.util
import json
import multiprocessing
import os
import time

import jax
import ml_collections
import pytest

from audiovae_jax.errors import ConfigError, TrainingError
from audiovae_jax.performance.benchmark import command, fresh, measure, peer
from configs import base

PEERS = ["torch"] if importlib.util.find_spec("torch") else []
OPTIONS = {
    "against": [], "repeats": 1, "warmup": 0, "profiled": False, "seconds": 0.1, "json_path": None
}  # fmt: skip


@pytest.fixture
def least_config(micro_config):
    """One residual unit, two discriminators: quick to compile."""
    micro_config.model.strides = (4,)
    micro_config.discriminator.mpd_channels = (2,)
    return micro_config


@pytest.mark.slow
def test_step_counts_the_compiled_work_by_part(least_config, tmp_path):
    path = tmp_path / "step.json"
    options = {**OPTIONS, "against": PEERS, "profiled": True, "json_path": str(path)}
    report = command.run("step", least_config, **options)
    assert json.loads(path.read_text()) == report
    ours = report["ours"]
    assert ours["flops"] > 1e6
    per_second = ours["flops"] / ours["seconds"]
    assert ours["share_of_flops_ceiling"] == pytest.approx(per_second / report["ceilings"]["flops"])
    shares = {(entry["part"], entry["direction"]): entry["share"] for entry in report["profile"]}
    assert sum(shares.values()) == pytest.approx(1)
    for part in ("encoder/blocks_0", "decoder/blocks_0", "msstft/discriminators_0", "mpd/discriminators_0"):
        for direction in ("forward", "backward"):
            assert shares[part, direction] > 0
    assert command.lines(report)[0].startswith(
        "step: training step, with discriminator, base_channels 4, 4 x 1024 samples, float32"
    )
    if PEERS:
        assert report["ratio"] == report["ratios"]["torch"] == ours["seconds"] / report["torch"]["seconds"]
        assert report["torch"]["torch"].startswith("2.")


@pytest.mark.slow
def test_codec_and_data_report_how_fast_audio_goes(micro_config, capsys):
    report = command.run("codec", micro_config, signals=4, **{**OPTIONS, "against": PEERS})
    said = capsys.readouterr().err.splitlines()
    assert "compiling the encoder ..." in said
    assert "decode: round 1 of 1" in said
    for direction in ("encode", "decode"):
        ours = report[direction]["ours"]
        assert ours["real_time_factor"] == pytest.approx(4 * 4408 / 44100 / ours["seconds"])
        assert set(report[direction]["ratios"]) == set(PEERS)
    data = command.run("data", micro_config, **OPTIONS)["ours"]
    assert data["bytes_per_second"] == pytest.approx(4 * 1024 * 2 * data["items_per_second"])


@pytest.mark.slow
def test_a_trained_model_is_measured_as_it_is(trained_run, capsys):
    workdir, config, _ = trained_run
    other = base.get_config()  # of another model and channel count
    other.batch_size = jax.device_count()
    report = command.run("codec", other, model=str(workdir), **OPTIONS)
    assert report["what"] == f"1 x 0.10 s of 44100 Hz audio, base_channels 4, float32, {workdir}"
    assert other.model.strides == config.model.strides
    assert "drawing parameters" not in capsys.readouterr().err
    with pytest.raises(ConfigError, match="benchmark step builds its model from --config; leave .* out"):
        command.run("step", other, model=str(workdir), **OPTIONS)


def test_the_first_step_is_measured_in_fresh_processes_and_memory_in_another(micro_config, monkeypatch):
    calls = []

    def in_fresh_process(fn, config, cache, *args):
        calls.append((fn.__name__, cache))
        return {"peak_bytes": 10, "seconds": 1.0}, measure.machine()

    monkeypatch.setattr(fresh, "_in_fresh_process", in_fresh_process)
    assert set(command.run("compile", micro_config, **OPTIONS)) >= {"cold", "warm"}
    assert command.run("memory", micro_config, **OPTIONS)["ours"]["peak_bytes"] == 10
    assert [name for name, _ in calls] == ["_first_step", "_first_step", "_first_step", "_peak"]
    assert calls[0][1] == calls[1][1] != calls[2][1] == calls[3][1]


@pytest.mark.slow
def test_a_fresh_process_answers_with_its_phases(least_config, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    least_config.use_adversarial = False
    found, machine = fresh._in_fresh_process(fresh._first_step, least_config, str(tmp_path))
    assert found["seconds"] > found["compile"] + found["initialise"] + found["step"] > 0
    assert list(tmp_path.iterdir())
    assert machine["jax"] == jax.__version__


def _end(config):
    os._exit(3)


@pytest.mark.slow
def test_a_fresh_process_that_fails_is_an_error(micro_config, tmp_path):
    micro_config.model.channel_mults = (1, 2)
    with pytest.raises(ConfigError, match=r"config.model.channel_mults has 2 entries and config.model.strides 1"):
        fresh._in_fresh_process(fresh._first_step, micro_config, str(tmp_path))
    with pytest.raises(TrainingError, match="the measuring process ended with status 3"):
        fresh._in_fresh_process(_end, ml_collections.ConfigDict(), str(tmp_path))


def _wait(config):
    time.sleep(600)


def test_an_interrupted_measurement_leaves_no_process(monkeypatch, tmp_path):
    def interrupt(connection):
        raise KeyboardInterrupt

    monkeypatch.setattr(multiprocessing.connection.Connection, "recv", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fresh._in_fresh_process(_wait, ml_collections.ConfigDict(), str(tmp_path))
    assert not multiprocessing.active_children()


def test_another_system_that_ends_is_an_error_with_its_output(micro_config, monkeypatch, tmp_path):
    program = tmp_path / "peer.py"
    program.write_text(
        "import sys\n"
        """print('{"device": "cpu"}', flush=True)\n"""
        "sys.exit('no memory left')\n"
    )
    monkeypatch.setattr(peer, "_PROGRAM", program)
    monkeypatch.setattr(peer, "check", lambda *_: None)
    with peer.Peer("torch", "step", micro_config) as other:
        other._process.wait()
        with pytest.raises(ConfigError, match="--against=torch ended: no memory left"):
            other.run("step")


def test_invalid_settings_are_errors_before_measuring(micro_config, monkeypatch, tmp_path):
    monkeypatch.setattr(measure, "ceilings", lambda *_: pytest.fail("it measured"))
    for path, message in (("no/such.json", "there is no folder"), ("", "must name a file")):
        with pytest.raises(ConfigError, match=message):
            command.run("step", micro_config, **{**OPTIONS, "json_path": path})

    def refuse(_):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(command, "require_writable", refuse)
        with pytest.raises(ConfigError, match=r"cannot write to .* \(Permission denied\)"):
            command.run("step", micro_config, **{**OPTIONS, "json_path": str(tmp_path / "x.json")})
    micro_config.model.dtype = "float8"
    with pytest.raises(ConfigError, match=r"config.model: .* dtype='float8' is not a dtype"):
        command.run("step", micro_config, **OPTIONS)


@pytest.mark.parametrize(
    ("subcommand", "against", "message"),
    [
        ("setp", [], "there is no benchmark 'setp'; did you mean 'step'?"),
        ("data", ["torch"], "data can only be compared with --against=whole"),
        ("step", ["numpy"], "--against=numpy is unknown; choose from torch, torch_compile, oobleck"),
        ("step", ["oobleck"], "is for the codec"),
    ],
)
def test_invalid_benchmarks_are_refused(micro_config, subcommand, against, message):
    with pytest.raises(ConfigError, match=message):
        command.run(subcommand, micro_config, **{**OPTIONS, "against": against})


@pytest.mark.slow
def test_a_config_that_torch_cannot_follow_is_refused(micro_config):
    pytest.importorskip("torch")
    micro_config.kl.free_bits = 0.5
    with pytest.raises(ConfigError, match=r"the torch reference supports only config.kl.free_bits=0.0, not 0.5"):
        command.run("step", micro_config, **{**OPTIONS, "against": ["torch"]})
    micro_config.kl.free_bits = 0.0
    micro_config.losses.mine = {"_target_": "audiovae_jax.losses.si_sdr", "weight": 1.0}
    with pytest.raises(ConfigError, match=r"the torch reference has no loss like config.losses.mine"):
        command.run("step", micro_config, **{**OPTIONS, "against": ["torch"]})
    micro_config.model.padding = "causal"
    with pytest.raises(ConfigError, match=r"the torch reference supports only config.model.padding='floor'"):
        command.run("codec", micro_config, **{**OPTIONS, "against": ["torch"]})
