"""Damage every file of a workdir and a saved model, one at a time: `python tests/fuzz_saved_files.py [FLIPS [CUTS]]`.

Each file is truncated at some places, has single bits flipped, and is removed. If a damaged file can still be read,
every array and number must be unchanged. Otherwise reading must raise a CheckpointError, and the other checkpoints
must stay readable.
"""

import collections
import random
import shutil
import sys
import tempfile
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from audiovae_jax import AudioVAE
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.persistence.saved_model import open_model, save_model
from audiovae_jax.training.state import TrainState

SMALL = {"base_channels": 2, "channel_mults": (1,), "strides": (2,), "latent_dim": 2, "dilations": (1,)}


def make_workdir(folder: Path):
    """A folder of checkpoints 1 and 2, of which 1 is the best."""
    store = Checkpoints(folder)
    for step in (1, 2):
        metrics = {"total_loss": float(step), "si_sdr_db": -3.25}
        store.save(_state(step), step=step, config={"x": 1}, data={"step": step, "fingerprint": "f"}, metrics=metrics)
        store.wait()
    store.close()


def make_saved_model(folder: Path):
    """Write a small model with every optional part."""
    model = AudioVAE(**SMALL)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), model.shapes())
    save_model(model, variables, folder, epoch=3, global_step=7, metadata={"a": [1, 0.5]}, sample_rate=48000)


def read_to_go_on(folder: Path):
    """Read what a resumed run would restore."""
    store = Checkpoints(folder, read_only=True)
    restored = store.restore(jax.eval_shape(lambda: _state(1)), mesh.replicated(mesh.make_mesh()))
    return restored.step, restored.state, restored.config, restored.data, restored.metrics


def read_to_use(folder: Path):
    """Read the weights of the newest readable checkpoint."""
    store = Checkpoints(folder, read_only=True)
    for step in store.steps()[::-1]:
        try:
            return step, store.parts(step, ("params", "latent_statistics")), store.config(step), store.metrics(step)
        except CheckpointError as error:
            reason = error
    raise reason


def read_saved_model(folder: Path):
    """Read everything that `load_model` and `load_training_state` return."""
    loaded = open_model(folder)
    fields = (loaded.kind, loaded.sample_rate, loaded.epoch, loaded.global_step, loaded.metadata)
    return loaded.model, loaded.variables, fields


def damages(data: bytes, flips: int, cuts: int, rng: random.Random):
    """Yield `(description, contents)` of damaged files; the contents are None if the file is removed."""
    yield "removed", None
    for _ in range(cuts):
        yield "cut", data[: rng.randrange(len(data))] if data else data
    for _ in range(flips if data else 0):
        damaged = bytearray(data)
        damaged[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        yield "flipped", bytes(damaged)


def fuzz(folder: Path, read, flips: int, cuts: int) -> dict[str, collections.Counter]:
    """Count the outcomes of each kind of damage: "refused", "unchanged", "older", and forbidden ones."""
    whole = read(folder)
    older = _read_without(folder, read)
    outcomes = collections.defaultdict(collections.Counter)
    rng = random.Random(0)
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        data = path.read_bytes()
        for what, damaged in damages(data, flips, cuts, rng):
            path.unlink()
            if damaged is not None:
                path.write_bytes(damaged)
            try:
                found = read(folder)
                same = "unchanged" if _same(found, whole) else "older" if _same(found, older) else None
                outcomes[what][same or f"SILENTLY DIFFERENT: {path.relative_to(folder)}"] += 1
            except CheckpointError:
                outcomes[what]["refused"] += 1
            except Exception as error:
                outcomes[what][f"ANOTHER ERROR: {path.relative_to(folder)}: {type(error).__name__}: {error}"] += 1
            path.write_bytes(data)
    return dict(outcomes)


def _state(value):
    return TrainState(
        step=jnp.int32(value),
        params={"a": jnp.arange(48, dtype=jnp.float32).reshape(6, 8) * value, "b": jnp.arange(5, dtype=jnp.bfloat16)},
        latent_statistics={"m": jnp.zeros(3)},
        opt_state=({"mu": jnp.ones(2)}, ()),
    )


def _read_without(folder, read):
    """Read without the newest checkpoint; nothing for a saved model."""
    newest = folder / "2"
    if not newest.is_dir():
        return None
    with tempfile.TemporaryDirectory() as aside:
        shutil.move(newest, aside)
        found = read(folder)
        shutil.move(Path(aside) / "2", newest)
    return found


def _same(a, b):
    """Return whether both are bit-identical."""
    leaves, structure = jax.tree.flatten(a)
    others, other = jax.tree.flatten(b)
    return structure == other and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes() if isinstance(x, jax.Array | np.ndarray) else x == y
        for x, y in zip(leaves, others, strict=True)
    )


def main(flips=20, cuts=5):
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        for name, make, read in (
            ("checkpoints, to go on", make_workdir, read_to_go_on),
            ("checkpoints, to use", make_workdir, read_to_use),
            ("saved model", make_saved_model, read_saved_model),
        ):
            start = time.monotonic()
            make(Path(folder) / name)
            files = sum(path.is_file() for path in (Path(folder) / name).rglob("*"))
            outcomes = fuzz(Path(folder) / name, read, int(flips), int(cuts))
            print(f"{name}: {files} files, {time.monotonic() - start:.0f} s")
            for what, counts in outcomes.items():
                print(f"  {what}: {dict(counts)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
