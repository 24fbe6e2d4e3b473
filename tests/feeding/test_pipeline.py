import numpy as np
import pytest

from audiovae_jax.feeding import pipeline


class Numbers:
    """Record i is [[i]]."""

    def __getitem__(self, index):
        return np.full((1, 1), index)


def _batches(**changes):
    options = {"batch_size": 4, "start_step": 0, "num_steps": 5, "num_threads": 2, "prefetch_batches": 2, **changes}
    return [batch[:, 0, 0].tolist() for batch in pipeline.batches(Numbers(), **options)]


def test_step_by_step_every_record_once_whatever_the_threads():
    expected = [list(range(4 * step, 4 * step + 4)) for step in range(5)]
    assert _batches() == _batches(num_threads=8, prefetch_batches=8) == _batches(num_threads=1) == expected


def test_a_resumed_run_sees_what_it_would_have_seen():
    assert _batches(start_step=3) == _batches()[3:]


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_get_contiguous_rows_that_make_up_the_batch(hosts):
    parts = [_batches(process_index=i, process_count=hosts) for i in range(hosts)]
    joined = [[row for part in parts for row in part[step]] for step in range(5)]
    assert joined == _batches()


def test_a_fixed_batch_repeats(micro_config):
    micro_config.data.fixed_batch = True
    data = pipeline.open_data(micro_config.data, batch_size=2, seed=0)
    np.testing.assert_array_equal(data.train[0], data.train[2])
    np.testing.assert_array_equal(data.validation[1], data.train[1])
    assert (data.train[0] != data.train[1]).any()
