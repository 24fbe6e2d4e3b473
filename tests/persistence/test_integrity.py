"""A run's checkpoints on a disk that flips bits, truncates and loses files. Restored values are the written ones."""

import collections
import random
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax.distributed import mesh
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.training.state import TrainState

_STEPS = (10, 20, 30, 40)  # of which 10 is the best


def _small_state():
    rng = np.random.default_rng(0)
    return TrainState(
        step=np.int32(3),
        params={"a": rng.standard_normal((64, 33), np.float32), "b": np.arange(5, dtype=jnp.bfloat16)},
        latent_statistics={"m": np.zeros(3, np.float32)},
        opt_state=({"mu": np.ones(2, np.float32)}, ()),
    )


def _write(folder, state):
    """Return `(folder, {step: state})`: states of four steps, all with different values."""
    store, states = Checkpoints(folder), {}
    for step in _STEPS:
        states[step] = jax.tree.map(lambda x, step=step: _turned(x, step), state)
        on_device = jax.tree.map(jnp.asarray, states[step])
        metrics = {"total_loss": float(step)}
        store.save(on_device, step=step, config={"x": 1}, data={"step": step}, metrics=metrics)
        store.wait()
    store.close()
    return folder, states


def _turned(array, step):
    return np.roll(array, step) if array.ndim else (array + step).astype(array.dtype)


def _damage(path, what, rng, within=1):
    content = bytearray(path.read_bytes())
    if what == "deletion":
        path.unlink()
        return
    if what == "truncation":
        content = content[: rng.randrange(len(content))]
    else:
        content[rng.randrange(len(content) // within)] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def _file_of_values(checkpoint):
    """Return the largest file of array values, which begins with them."""
    files = (checkpoint / "state" / "ocdbt.process_0" / "d").iterdir()
    return max(files, key=lambda path: path.stat().st_size)


def _contents(folder):
    return sorted((path.name, path.read_bytes()) for path in folder.rglob("*") if path.is_file())


def _go_on(folder, states, step_of_damage):
    """Restore as a run does, and write the next checkpoint. Return the outcome."""
    before = _contents(folder)
    store = Checkpoints(folder, kept=len(_STEPS) + 1)
    target = jax.eval_shape(lambda: states[_STEPS[0]])
    restored = store.restore(target, mesh.replicated(mesh.make_mesh(jax.devices()[:1])))
    for (path, array), wanted in zip(
        jax.tree_util.tree_leaves_with_path(restored.state), jax.tree.leaves(states[restored.step]), strict=True
    ):
        assert np.asarray(array).tobytes() == np.asarray(wanted).tobytes(), jax.tree_util.keystr(path)
    assert restored.metrics == {"total_loss": float(restored.step)}
    assert (restored.config, restored.data) == ({"x": 1}, {"step": restored.step})
    fell_back = restored.step != _STEPS[-1]
    assert fell_back == bool(restored.damaged)
    if fell_back:
        assert restored.step == _STEPS[-2]
        assert f"checkpoints/{_STEPS[-1]} " in restored.damaged[0]
        assert step_of_damage == _STEPS[-1]
    store.save(restored.state, step=50, config={"x": 1}, data={"step": 50}, metrics={"total_loss": 50.0})
    store.wait()
    store.close()
    there = collections.Counter(_contents(folder.parent))
    assert not collections.Counter(before) - there, "a file was deleted"
    assert store.steps()[-1] == 50
    assert store.metrics(50) == {"total_loss": 50.0}
    return "fell back" if fell_back else "went on, bit-identical"


def _try_all(checkpoints, tmp_path, counts, seed=0):
    folder, states = checkpoints
    rng, outcomes = random.Random(seed), collections.defaultdict(collections.Counter)
    for what, count in counts.items():
        for i in range(count):
            copy = shutil.copytree(folder, tmp_path / f"{what}{i}" / "checkpoints")
            # The newest checkpoint in half of the cases. Damage of an older one must not spread.
            step = _STEPS[-1] if i % 2 == 0 else rng.choice(_STEPS[:-1])
            files = sorted(path for path in (copy / str(step)).rglob("*") if path.is_file())
            # The arrays' values in half of the cases, as they fill the disk, and any file in the others: many of those
            # are only read where others are missing, or never. So is what follows the values in their file.
            of_values = i % 4 < 2
            damaged = _file_of_values(copy / str(step)) if of_values else rng.choice(files)
            _damage(damaged, what, rng, within=2 if of_values else 1)
            try:
                where = "of the newest" if step == _STEPS[-1] else "of an older one"
                where += "'s values" if of_values else ""
                outcomes[f"{what} {where}"][_go_on(copy, states, step)] += 1
            except Exception as error:
                raise AssertionError(f"{what} {i} of {damaged.relative_to(copy)}") from error
            shutil.rmtree(copy.parent)
    return {what: dict(counts) for what, counts in outcomes.items()}


def test_a_run_resumes_from_written_values_after_any_damage(tmp_path):
    checkpoints = _write(tmp_path / "whole" / "checkpoints", _small_state())
    _try_all(checkpoints, tmp_path, {"flip": 4, "truncation": 4, "deletion": 4})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own threads
@pytest.mark.parametrize("of_a_run", [False, True], ids=["small", "of a run"])
def test_200_flips_50_truncations_20_deletions(of_a_run, trained_run, tmp_path):
    checkpoints = _write(tmp_path / "whole" / "checkpoints", trained_run[2] if of_a_run else _small_state())
    share = 5 if of_a_run else 1  # a run's state has 191 arrays, and takes seconds to restore
    counts = {"flip": 200 // share, "truncation": 50 // share, "deletion": 20 // share}
    outcomes = _try_all(checkpoints, tmp_path, counts, seed=1)
    print(outcomes)
    assert sum(sum(found.values()) for found in outcomes.values()) == sum(counts.values())
    # A run's small arrays are in several files, next to data that is written but never read.
    flips = outcomes["flip of the newest's values"]
    assert flips["fell back"] >= counts["flip"] // 8 if of_a_run else flips == {"fell back": counts["flip"] // 4}
    assert outcomes["deletion of the newest's values"] == {"fell back": counts["deletion"] // 4}


def test_earlier_set_aside_checkpoints_are_kept(tmp_path):
    folder, states = _write(tmp_path / "checkpoints", _small_state())
    for content in (b"first", b"second", b"third"):
        (folder / "40" / "run" / "metadata").write_bytes(content)
        assert _go_on(folder, states, 40) == "fell back"
        shutil.rmtree(folder / "50")
        shutil.copytree(folder / "30", folder / "40")
    places = [tmp_path / "damaged_checkpoints" / name for name in ("40", "40.1", "40.2")]
    assert [(place / "run" / "metadata").read_bytes() for place in places] == [b"first", b"second", b"third"]
