import numpy as np
import pytest

from audiovae_jax.evaluation.summary import bootstrap, summarize


def test_the_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(5, 2, 400)
    low, high = bootstrap(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert (low, high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05)
    assert bootstrap(values) == (low, high)
    assert bootstrap(values[:1]) == (None, None)


def test_systems_are_compared_on_the_files_that_both_have():
    rows = [
        {"file": "a", "system": "one", "si_sdr_db": 1.0},
        {"file": "b", "system": "one", "si_sdr_db": 20.0},
        {"file": "c", "system": "one", "si_sdr_db": None},
        {"file": "a", "system": "two", "si_sdr_db": 3.0},
        {"file": "b", "system": "two", "si_sdr_db": 22.0},
        {"file": "c", "system": "two", "si_sdr_db": float("inf")},
        {"file": "d", "system": "two", "si_sdr_db": 5.0},
    ]
    table = summarize(rows, ["one", "two"])
    assert table["one"]["si_sdr_db"]["mean"] == 10.5
    two = table["two"]["si_sdr_db"]
    assert (two["files"], two["mean"], two["median"]) == (3, 10.0, 5.0)
    # Each file differs by 2, so the interval is narrow although the files differ.
    assert (two["less_first"], two["less_first_low"], two["less_first_high"]) == (2.0, 2.0, 2.0)
    assert "less_first" not in table["one"]["si_sdr_db"]
    assert "mse" not in table["one"]
