import pytest

from audiovae_jax.performance.planning.search import MAX_BATCH, largest_batch


def _search(peak, first, limit, compiles=10, fixed=100):
    tried = []

    def measured(batch):
        tried.append(batch)
        return peak(batch)

    largest, ended = largest_batch(
        measured, known={first: peak(first)}, fixed_bytes=fixed, usable_bytes=limit, compiles=compiles
    )
    return largest, ended, tried


def test_a_straight_line_needs_one_compile():
    assert _search(lambda b: 100 + 10 * b, 1, 505) == (40, True, [40])


@pytest.mark.parametrize("first", [1, 7, 64])
@pytest.mark.parametrize("limit", [112, 500, 1234])
def test_a_bent_line_is_followed_to_the_end(first, limit):
    def peak(batch):
        return int(100 + 11 * batch + 0.1 * batch**1.5 + 20 * (batch > 5))

    largest, ended, tried = _search(peak, first, limit)
    assert ended
    assert peak(largest) <= limit or largest == 0
    assert peak(largest + 1) > limit
    assert len(tried) <= 4


def test_nothing_fits():
    assert _search(lambda b: 100 + 10 * b, 4, 105) == (0, True, [1])


def test_a_compiler_that_finds_no_room_has_no_peak():
    def peak(batch):
        return 100 + 10 * batch if batch <= 13 else None

    largest, ended, tried = _search(peak, 64, 10_000)
    assert (largest, ended) == (13, True)
    assert tried[0] == 32


def test_a_search_that_ends_early_is_reported():
    assert _search(lambda b: 100 + 10 * b, 1, 505, compiles=0) == (1, False, [])


def test_what_takes_no_memory_has_an_end_too():
    assert _search(lambda b: 100, 1, 505) == (MAX_BATCH, True, [MAX_BATCH])
