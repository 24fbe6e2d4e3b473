"""Plans, compiled in separate processes."""

import importlib.util
import json
from pathlib import Path

import command_line
import jax
import pytest
from conftest import plannable

from audiovae_jax.config import build
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import ConfigError, PlanError
from audiovae_jax.models.layers import count_parameters
from audiovae_jax.performance.planning import hlo, plan, table, targets
from audiovae_jax.performance.planning.compiling import StepCompiler
from audiovae_jax.performance.planning.worker import Worker
from audiovae_jax.run import programs, train
from audiovae_jax.training import compilation
from audiovae_jax.training import program as training_program
from audiovae_jax.training.program import scalars_of

ROOT = Path(__file__).resolve().parents[3]
LIMITS = plan.Limits(compiles=1, host_memory=None, seconds=600)
PLANNED = (
    "argument_bytes", "temp_bytes", "bytes_moved", "collectives", "largest_batch_per_device", "compile_seconds",
)  # fmt: skip


@pytest.fixture
def small(micro_config):
    micro_config.use_adversarial = False
    return micro_config


@pytest.mark.slow
def test_a_plan_for_cpus(small):
    small.batch_size = 6
    said = []
    report = plan.plan(small, targets.parse(["cpu:2"]), LIMITS, said.append)
    entry = json.loads(json.dumps(report))["targets"]["cpu:2"]
    assert set(PLANNED) <= entry.keys()
    assert (entry["count"], entry["hosts"], entry["batch_per_device"], entry["fits"]) == (2, 1, 3, True)
    assert entry["largest_batch_per_device"] == 3
    assert entry["search_ended"] is False  # one compile finds no largest batch
    recipe = build.build_recipe(small)
    state = training_program.abstract_state(recipe, mesh.make_mesh(), build.example_shape(small))
    assert entry["checkpoint_bytes"] == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    numbers = len(jax.tree.leaves(scalars_of(recipe)))
    assert entry["argument_bytes"] == entry["checkpoint_bytes"] + 3 * 1024 * 2 * 4 + 4 * numbers
    (collective,) = entry["collectives"]
    assert collective["op"] == "all-reduce"
    # The gradient, together with a few scalar metrics.
    assert 0 <= collective["bytes"] - 4 * count_parameters(state.params) < 200
    assert entry["flops"] > 1e6
    assert entry["host_peak_bytes"] > 1e8
    lines = "\n".join(table.plan_lines(report))
    assert "3 per device, 6 in total" in lines
    assert "3 or more (compiled: 3)" in lines
    assert any("compiling for 3 items per device" in text for text in said)


def test_a_failure_belongs_to_one_target(small):
    """A compile that needs too much memory or time is stopped and reported."""
    greedy = plan.plan(small, targets.parse(["cpu:2"]), plan.Limits(1, 1_000_000, 600), lambda text: None)
    assert "took more than 0.0 GB of this machine's memory" in greedy["targets"]["cpu:2"]["error"]
    assert any(line.startswith("error: cpu:2") for line in table.plan_lines(greedy))
    with pytest.raises(PlanError, match=r"took more than 0\.001\S* minutes and was stopped; raise"):
        Worker(small, targets.parse(["cpu:2"])[0], None, 0.1)


@pytest.mark.slow
def test_a_config_that_cannot_work_is_the_users_error(small):
    small.data.crop_length = 1000
    small.model.strides = (7,)
    with pytest.raises(ConfigError, match="not a multiple of the model's hop of 7"):
        plan.plan(small, targets.parse(["cpu:2"]), LIMITS, lambda text: None)


@pytest.mark.slow
def test_the_plan_is_of_the_program_that_training_runs(micro_config, tmp_path, monkeypatch):
    compiled = []
    real = compilation.compiled

    def keep(*args, **options):
        compiled.append(real(*args, **options))
        return compiled[-1]

    monkeypatch.setattr(programs.compilation, "compiled", keep)
    train.train(micro_config, tmp_path)
    ran = compiled[-1]
    planned = StepCompiler(micro_config, targets.parse(["here"])[0]).compile(1)
    assert list(planned.collectives) == hlo.collectives(ran.as_text())
    assert planned.collectives[0].devices == jax.device_count()
    assert planned.temp_bytes == ran.memory_analysis().temp_size_in_bytes
    assert planned.argument_bytes == ran.memory_analysis().argument_size_in_bytes


@pytest.mark.slow
@pytest.mark.parametrize("name", ["h200:2x4", "v5e:2x4"])
def test_one_all_reduce_an_update(micro_config, name):
    """For two hosts of GPUs and for a slice, sums cross the network once per optimizer."""
    with Worker(micro_config, plannable(name), None, 1200) as worker:
        assert (worker.devices.count, worker.devices.hosts) == (8, 2)
        compiled = worker.compile(1)
    assert [collective.op for collective in compiled.collectives] == ["all-reduce", "all-reduce"]
    assert all(collective.devices == 8 for collective in compiled.collectives)
    state = training_program.abstract_state(
        build.build_recipe(micro_config), mesh.make_mesh(), build.example_shape(micro_config)
    )
    parameters = count_parameters((state.params, state.discriminator_params))
    # Only the gradients and a few scalar metrics.
    assert 0 <= sum(collective.bytes for collective in compiled.collectives) / 4 - parameters < 50


@pytest.mark.slow
def test_the_command(tmp_path):
    command = [
        f"--config={ROOT}/configs/tiny.py:no_adversarial",
        "--config.model.base_channels=4", "--config.model.channel_mults=(1,)", "--config.model.strides=(8,)",
        "--config.model.latent_dim=4", "--config.losses.stft.fft_sizes=(64,)", "--config.losses.mel.fft_sizes=(256,)",
        "--config.losses.mel.n_mels=(8,)", "--config.data.crop_length=512", "--target=cpu:2,here",
        "--json=plan.json", "--compiles=2",
    ]  # fmt: skip
    done = command_line.run("plan", *command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Planned by XLA, for one device and one step; nothing was run." in done.stdout
    found = json.loads((tmp_path / "plan.json").read_text())["targets"]
    assert list(found) == ["cpu:2", "here"]
    for entry in found.values():
        assert entry["largest_batch_per_device"] >= entry["batch_per_device"]
        assert len(entry["compiled"]) <= 2
    if importlib.util.find_spec("libtpu") is None:
        refused = command_line.run("plan", *command[:-3], "--target=cpu:2,v5e:4x4", cwd=tmp_path)
        assert refused.returncode == 1
        assert "pip install 'audiovae_jax[tpu]'" in refused.stderr
        assert "Traceback" not in refused.stderr
