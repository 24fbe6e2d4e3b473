import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from audiovae_jax.distributed import mesh
from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.storage import bucket_path
from audiovae_jax.storage.checksum import checksums
from audiovae_jax.training.state import TrainState


def _state(value=1.0) -> TrainState:
    return TrainState(
        step=jnp.int32(3),
        params={"a": jnp.full((64, 64), value), "b": jnp.arange(5, dtype=jnp.bfloat16)},
        latent_statistics={"m": jnp.zeros(3)},
        opt_state=({"mu": jnp.ones(2)}, ()),
    )


def _save(store, step, value=1.0, loss=1.0):
    store.save(_state(value), step=step, config={"x": 1}, data={"step": step}, metrics={"total_loss": loss})
    store.wait()


@pytest.fixture
def store(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints")
    yield store
    store.close()


def _restore(store, step=None):
    return store.restore(jax.eval_shape(_state), mesh.replicated(mesh.make_mesh()), step)


def test_a_checkpoint_comes_back_bit_for_bit_with_its_config_and_metrics(store):
    _save(store, 3, value=math.pi, loss=0.25)
    restored = _restore(store)
    jax.tree.map(np.testing.assert_array_equal, restored.state, _state(math.pi))
    assert (restored.step, restored.config, restored.data) == (3, {"x": 1}, {"step": 3})
    assert restored.metrics["total_loss"] == 0.25
    assert restored.state.params["a"].sharding.num_devices == 4


def test_a_checkpoint_of_a_state_with_fewer_fields_is_readable(store):
    older = {name: getattr(_state(), name) for name in ("step", "params", "latent_statistics", "opt_state")}
    store.save(older, step=3, config={}, data={}, metrics={})
    store.wait()
    jax.tree.map(np.testing.assert_array_equal, _restore(store).state, _state())


@pytest.mark.parametrize(("kept", "steps"), [(1, [2, 6]), (3, [2, 4, 5, 6])])
def test_the_last_few_and_the_best_are_kept_and_nan_is_never_best(tmp_path, kept, steps):
    store = Checkpoints(tmp_path / "checkpoints", kept=kept)
    for step, loss in enumerate([3.0, 1.0, math.nan, 2.0, -math.inf, math.nan], start=1):
        _save(store, step, loss=loss)
    store.close()
    assert store.steps() == steps
    assert store.best()[0] == 2


def test_the_best_few_are_kept_by_the_metric_of_the_config(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints", kept=1, kept_best=2)
    for step, ratio in enumerate([3.0, 9.0, math.inf, 5.0, 1.0], start=1):
        metrics = {"total_loss": float(step), "si_sdr_db": ratio}
        store.save(_state(), step=step, config={"best_metric": "si_sdr_db"}, data={}, metrics=metrics)
        store.wait()
    store.close()
    for opened in (store, Checkpoints(tmp_path / "checkpoints", read_only=True)):
        assert opened.steps() == [2, 4, 5]
        assert opened.best() == (2, 9.0)
        assert opened.best_first() == [2, 5, 4]


def test_only_the_newest_without_a_validation_is_kept_beside_the_validated_ones(tmp_path):
    store = Checkpoints(tmp_path / "checkpoints", kept=2)
    for step in range(1, 12):
        metrics = {"total_loss": step / 3} if step in (3, 6, 9) else {}
        store.save(_state(), step=step, config={}, data={}, metrics=metrics)
        store.wait()
    assert store.steps() == [3, 6, 9, 11]
    assert store.set_aside_unvalidated() == [11]
    assert store.steps() == [3, 6, 9]
    assert [path.name for path in (tmp_path / "damaged_checkpoints").iterdir()] == ["11"]
    assert store.set_aside_unvalidated() == []
    _save(store, 10)
    store.close()
    assert store.steps() == [3, 9, 10]


def _damage(folder):
    """Flip one bit of the largest array file."""
    path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(bytes(data))


def test_a_damaged_checkpoint_is_passed_over_and_named(store, tmp_path):
    _save(store, 1, value=1.0, loss=1.0)
    _save(store, 2, value=2.0, loss=2.0)
    _damage(tmp_path / "checkpoints" / "2" / "state")
    restored = _restore(store)
    assert restored.step == 1
    assert len(restored.damaged) == 1
    assert "checkpoints/2 is damaged" in restored.damaged[0]
    # A run that resumes from step 1 reaches step 2 again, and nothing was deleted.
    _save(store, 2, value=3.0, loss=2.0)
    assert _restore(store).state.params["a"][0, 0] == 3.0
    assert (tmp_path / "damaged_checkpoints" / "2" / "state").is_dir()
    _damage(tmp_path / "checkpoints" / "1" / "state")
    _damage(tmp_path / "checkpoints" / "2" / "state")
    both = r"no checkpoint could be restored:\n.*checkpoints/2 .*\n.*checkpoints/1 (.|\n)*or start in another --workdir"
    with pytest.raises(CheckpointError, match=both):
        _restore(store)


def test_nothing_is_deleted_before_something_is_written(tmp_path):
    unfinished = tmp_path / "checkpoints" / "7.orbax-checkpoint-tmp"
    unfinished.mkdir(parents=True)
    store = Checkpoints(tmp_path / "checkpoints")
    assert store.steps() == []
    store.close()
    assert unfinished.is_dir()
    _save(store, 1)
    store.close()
    assert not unfinished.exists()


def test_unreadable_descriptions_are_set_aside_by_the_next_save(store, tmp_path):
    for step, loss in ((1, 1.0), (2, 2.0)):
        _save(store, step, value=float(step), loss=loss)
    folder = tmp_path / "checkpoints"
    assert store.best() == (1, 1.0)
    (folder / "2" / "run" / "metadata").write_text('{"total')
    (folder / "1" / "run" / "metadata").write_text("nonsense")
    assert (store.steps(), store.best()) == ([1, 2], None)
    for step in (1, 2):
        with pytest.raises(CheckpointError, match=f"checkpoints/{step} is damaged: JSONDecodeError"):
            store.metrics(step)
    again = Checkpoints(folder)
    _save(again, 3)
    again.close()
    assert again.steps() == [3]
    assert sorted(p.name for p in (tmp_path / "damaged_checkpoints").iterdir()) == ["1", "2"]


def test_a_changed_description_is_damage(store, tmp_path):
    _save(store, 1)
    path = tmp_path / "checkpoints" / "1" / "run" / "metadata"
    path.write_text(path.read_text().replace('"x": 1', '"x": 3'))
    with pytest.raises(CheckpointError, match="does not match its checksum"):
        store.config(1)
    assert store.newest_config() is None
    for text, message in (('{"format": 9}', "has format 9; this version reads format 3"), ("[1]", "has format none")):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            store.config(1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own threads
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_full_disk_is_an_error_and_leaves_intact_files(store, tmp_path, full_disk):
    _save(store, 1)
    big = _state().replace(params={"a": jnp.asarray(np.random.default_rng(0).standard_normal(500_000))})

    def save():
        store.save(big, step=2, config={}, data={}, metrics={"total_loss": 1.0})
        store.wait()

    expected = r"was not written to .*: File too large; .*intact checkpoints: 1"
    with full_disk(200_000), pytest.raises(CheckpointError, match=expected):
        save()
    store.close()
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


def test_any_single_flipped_bit_changes_the_checksum():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.int32, jnp.bfloat16, np.float16, np.uint8):
        array = rng.integers(0, 255, 40 * np.dtype(dtype).itemsize, dtype=np.uint8)
        before = checksums({"x": jnp.asarray(array.view(dtype))})
        for bit in rng.integers(0, array.size * 8, 20):
            flipped = array.copy()
            flipped[bit // 8] ^= np.uint8(1 << (bit % 8))
            assert checksums({"x": jnp.asarray(flipped.view(dtype))}) != before


def test_a_state_of_another_shape_is_refused(store):
    _save(store, 1)
    target = jax.eval_shape(_state)
    target = target.replace(params={**target.params, "a": jax.ShapeDtypeStruct((7,), jnp.float32)})
    with pytest.raises(
        CheckpointError, match=r"this configuration: params/a is float32\[64, 64\] there, float32\[7\] here"
    ):
        store.restore(target, mesh.replicated(mesh.make_mesh()))


def test_json_is_written_atomically(tmp_path):
    bucket_path.write_json(tmp_path / "new" / "a.json", {"b": 1})
    assert json.loads((tmp_path / "new" / "a.json").read_text()) == {"b": 1}
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["a.json"]


def test_pairs_of_flips_do_not_cancel_in_the_checksum():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((64, 64)), jnp.float32)
    sums = {checksums({"x": y})["x"] for y in (x, -x, x[::-1], x.at[:2].multiply(-1), x + 0 * x)}
    assert len(sums) == 4


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "int32", "int8", "bool", "uint8"])
def test_the_checksum_is_the_same_on_host_and_device(dtype):
    array = jnp.asarray(np.random.default_rng(0).standard_normal((7, 5)) * 50).astype(dtype)
    for part in (array, array[0], array[0, 0], array.T):
        assert checksums({"x": part}) == checksums({"x": np.asarray(part)})
