import importlib.util

import pytest

from audiovae_jax.errors import ConfigError
from audiovae_jax.performance.planning import targets


def test_shapes_are_hosts_by_gpus_or_a_topology():
    two, slice_, here, cpu, one = targets.parse(["h200:2x8", "v5e:4x4", "here", "cpu:8", "H100"])
    assert (two.platform, two.shape) == ("cuda", (2, 8))
    assert (slice_.platform, slice_.shape) == ("tpu", (4, 4))
    assert (here.platform, here.is_here) == ("here", True)
    assert (cpu.platform, cpu.shape) == ("cpu", (1, 8))
    assert (one.name, one.shape) == ("h100", (1, 1))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("h20:8", "there is no target 'h20'; did you mean 'h200'"),
        ("v5e", "must have a shape of whole numbers"),
        ("h200:2x8x1", "the shape of h200 must be hosts x devices, such as h200:2x8"),
        ("h200:0", "must have a shape of whole numbers"),
        ("cpu:2x4", "the shape of cpu must be devices, such as cpu:8"),
        ("", "--target is empty"),
    ],
)
def test_a_target_that_makes_no_sense_is_refused(given, message):
    with pytest.raises(ConfigError, match=message):
        targets.parse([given])
    with pytest.raises(ConfigError, match="contains a target twice"):
        targets.parse(["cpu:8", "cpu:8"])


@pytest.mark.parametrize(("name", "extra"), [("h200:2x8", "cuda"), ("v5e:4x4", "tpu")])
def test_an_extra_that_is_missing_is_named(monkeypatch, name, extra):
    (target,) = targets.parse([name])
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ConfigError, match=rf"pip install 'audiovae_jax\[{extra}\]'"):
        target.require_installed()
    targets.parse(["cpu:8"])[0].require_installed()


def test_a_gpu_gives_the_share_that_jax_takes(monkeypatch):
    (target,) = targets.parse(["h200"])
    monkeypatch.delenv("XLA_PYTHON_CLIENT_MEM_FRACTION", raising=False)
    assert target.usable_bytes == 150_754_820_096 * 3 // 4
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.5")
    assert target.usable_bytes == 150_754_820_096 // 2
    monkeypatch.setenv("XLA_PYTHON_CLIENT_MEM_FRACTION", "most")
    with pytest.raises(ConfigError, match="XLA_PYTHON_CLIENT_MEM_FRACTION=most must be a number"):
        _ = target.usable_bytes


def test_a_gpus_description_has_its_own_figures():
    h100, h200 = targets.parse(["h100", "h200"])
    assert "device_memory_size: 84978434048" in h100.accelerator.target_config
    assert "memory_bandwidth: 4800000000000" in h200.accelerator.target_config


def test_a_tpu_compiler_returns_freed_memory_unless_the_user_configures_malloc(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    (target,) = targets.parse(["v5e:4x4"])
    assert target.environment["MALLOC_ARENA_MAX"] == "1"
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert target.environment["MALLOC_ARENA_MAX"] == "4"
