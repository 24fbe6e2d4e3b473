"""Where processes are, and which ones hold up the others."""

import contextlib
import time

import pytest

from audiovae_jax.distributed.progress import Place, Progress, stuck


def test_a_phase_lies_within_another_and_each_change_is_progress():
    progress = Progress()
    seen = [progress.place()]
    progress.step(4)
    seen.append(progress.place())
    with progress.phase("validating"):
        seen.append(progress.place())
        with progress.phase("compiling"):
            seen.append(progress.place())
        assert progress.made(3) == 3
        seen.append(progress.place())
    progress.step(2)  # after a rollback
    seen.append(progress.place())
    assert [(place.phase, place.step) for place in seen] == [
        ("starting", 0), ("step", 4), ("validating", 4), ("compiling", 4), ("validating", 4), ("step", 2),
    ]  # fmt: skip
    assert [place[:2] for place in seen] == sorted({place[:2] for place in seen})


def test_seconds_count_from_the_last_change():
    progress = Progress()
    time.sleep(0.05)
    assert progress.place().seconds >= 0.05
    progress.step(1)
    assert progress.place().seconds < 0.05


def test_every_second_belongs_to_the_innermost_phase(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    progress = Progress()
    now[0] += 1
    progress.step(1)
    now[0] += 2
    with contextlib.suppress(KeyError), progress.phase("validating"):
        now[0] += 4
        with progress.phase("compiling"):
            now[0] += 8
        progress.made(None)
        now[0] += 16
        raise KeyError
    now[0] += 32
    assert progress.seconds() == {"starting": 1, "step": 34, "validating": 20, "compiling": 8}
    progress.move(5, "validating", "saving")
    assert progress.seconds() == {"starting": 1, "step": 34, "validating": 15, "compiling": 8, "saving": 5}


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ({0: (7, 0, "step", 99), 1: (6, 3, "step", 99)}, [1]),  # 0 waits for 1
        ({0: (6, 0, "step", 99), 1: (6, 1, "reading", 99)}, [0]),
        ({0: (6, 0, "step", 99), 1: (6, 0, "step", 99)}, [0, 1]),
        ({0: (7, 0, "step", 99), 1: (6, 3, "compiling", 99)}, []),
        ({0: (7, 0, "step", 99), 1: (6, 3, "step", 9)}, []),  # 1 is slow, but not stuck
        ({0: (0, 1, "waiting", 99), 1: (0, 0, "starting", 99)}, []),
    ],
)
def test_the_furthest_behind_hold_up_the_others(places, expected):
    places = {index: Place(*place[:3], step=5, seconds=place[3]) for index, place in places.items()}
    assert stuck(places, 10) == expected
