import jax.numpy as jnp
import pytest

from audiovae_jax.benchmark import measure
from audiovae_jax.benchmark.measure import Timing


def test_a_timing_is_summed_up_by_its_median_and_compared_pair_by_pair():
    ours, theirs = Timing((1.0, 4.0, 2.0)), Timing((2.0, 4.0, 8.0))
    assert ours.summary() == {"seconds": 2.0, "fastest": 1.0, "slowest": 4.0, "repeats": 3}
    assert ours.over(theirs) == 0.5  # of 0.5, 1 and 0.25


def test_work_takes_turns_and_only_its_second_time_after_the_warmup_counts():
    order = []

    def work(name):
        def once():
            order.append(name)
            return len(order)

        return once

    timings = measure.side_by_side({"a": work("a"), "b": work("b")}, repeats=2, warmup=1)
    assert "".join(order) == "aabb" * 3
    assert timings["a"].seconds == (6, 10)
    assert timings["b"].seconds == (8, 12)


def test_the_machine_and_its_ceilings_are_positive_numbers():
    found = measure.ceilings(jnp.float32)
    assert found["dtype"] == "float32"
    assert min(found["flops"], found["bytes"]) > 1e8
    assert measure.machine()["jax"]


def test_peak_memory_is_that_since_the_reset():
    measure.reset_peak_memory()
    before = measure.peak_memory()
    block = bytearray(b"x") * 300_000_000
    peak = measure.peak_memory()
    del block
    measure.reset_peak_memory()
    if measure.peak_memory() == peak:
        pytest.skip("this system does not let a process reset its peak")
    assert peak > before + 250_000_000
    assert measure.peak_memory() < peak - 250_000_000
