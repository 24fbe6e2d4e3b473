from types import SimpleNamespace

import pytest

from audiovae_jax.performance.planning.accelerators import (
    ACCELERATORS,
    all_reduce_seconds,
    peak_flops_of,
    step_bounds,
)


def test_one_device_sums_in_no_time():
    assert all_reduce_seconds(1e9, ACCELERATORS["h200"], 1, 1) == 0


def test_a_slice_sends_nearly_everything_twice():
    seconds = all_reduce_seconds(1e9, ACCELERATORS["v5e"], 2, 8)
    assert seconds == pytest.approx(2 * 15 / 16 * 1e9 / 200e9)


def test_across_hosts_the_slower_of_links_and_network_counts():
    h200 = ACCELERATORS["h200"]
    inside = all_reduce_seconds(1e9, h200, 1, 8)
    assert inside == pytest.approx(2 * 7 / 8 * 1e9 / 450e9)
    assert all_reduce_seconds(1e9, h200, 2, 8) == pytest.approx(max(inside, 2 * 1 / 2 * 1e9 / 8 / 50e9))
    assert all_reduce_seconds(1e9, h200, 2, 1) == pytest.approx(1e9 / 50e9)


def test_bounds_are_work_over_published_rates():
    bounds = step_bounds(
        flops=989.4e12, bytes_moved=4.8e12, reduced_bytes=0, dtype="bfloat16",
        accelerator=ACCELERATORS["h200"], hosts=1, per_host=8,
    )  # fmt: skip
    assert bounds == {"arithmetic": pytest.approx(1), "memory": pytest.approx(1), "collectives": 0}


def test_the_peak_rate_of_a_device_is_found_by_its_kind():
    h200 = SimpleNamespace(device_kind="NVIDIA H200")
    assert peak_flops_of(h200, "bfloat16") == 989.4e12
    assert peak_flops_of(h200, "float16") is None
    assert peak_flops_of(SimpleNamespace(device_kind="cpu"), "float32") is None
