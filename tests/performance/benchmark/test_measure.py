import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import pytest

from audiovae_jax.performance.benchmark import measure
from audiovae_jax.performance.benchmark.measure import Timing

ROOT = Path(__file__).resolve().parents[3]


def test_a_timing_is_summed_up_by_its_median_and_compared_pair_by_pair():
    ours, theirs = Timing((1.0, 4.0, 2.0)), Timing((2.0, 4.0, 8.0))
    assert ours.summary() == {"seconds": 2.0, "fastest": 1.0, "slowest": 4.0, "repeats": 3}
    assert ours.over(theirs) == 0.5  # of 0.5, 1 and 0.25


def test_functions_alternate_and_only_second_runs_after_the_warmup_count():
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


_PEAKS = """
from audiovae_jax.performance.benchmark import measure
measure.reset_peak_memory()
print(measure.peak_memory())
block = bytearray(b"x") * 300_000_000
print(measure.peak_memory())
del block
measure.reset_peak_memory()
print(measure.peak_memory())
"""


def test_peak_memory_is_that_since_the_reset():
    # In its own process, since memory of other tests may be freed here at any time.
    run = subprocess.run([sys.executable, "-c", _PEAKS], capture_output=True, text=True, check=True, cwd=ROOT)
    before, peak, after = map(int, run.stdout.split())
    if after == peak:
        pytest.skip("this system does not let a process reset its peak")
    assert peak > before + 250_000_000
    assert after < peak - 250_000_000
