"""Checkpoints of two processes: damage that one finds, or a full disk of one, counts for both."""

import os
import socket
import subprocess
import sys

import pytest

_WORKER = """
import resource, sys, time
import jax
jax.config.update("jax_num_cpu_devices", 2)
me, address, folder, what = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
jax.distributed.initialize(
    address, 2, me, cluster_detection_method="deactivate", coordinator_bind_address=address,
    initialization_timeout=60, heartbeat_timeout_seconds=10, shutdown_timeout_seconds=30,
)
from pathlib import Path
import jax.numpy as jnp
import numpy as np
from audiovae_jax.errors import CheckpointError
from audiovae_jax.distributed import agreement
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run.saving import Saving
from audiovae_jax.distributed import mesh
from audiovae_jax.training.state import TrainState

sharding = mesh.replicated(mesh.make_mesh())
values = np.random.default_rng(0).standard_normal(300_000).astype(np.float32)

def state(step):
    def create():
        return TrainState(step=jnp.int32(step), params={"a": values * step}, latent_statistics={}, opt_state=())
    return jax.jit(create, out_shardings=sharding)()

store = Checkpoints(Path(folder) / "checkpoints")
said = []
saving = Saving(store, 10, said.append)

def save(step):
    saving.save(state(step), step=step, config={}, data={}, metrics={"total_loss": float(step)})

if what == "damage":
    for step in (1, 2):
        save(step)
    saving.finish()
    assert agreement.of_first([5 + me, 2**40]) == [5, 2**40]
    assert agreement.of_first([]) == []
    real = Checkpoints._restore_step
    def seen_by_the_second(self, step, abstract):
        if step == 2 and me == 1:
            raise CheckpointError("checkpoints/2 is damaged: here")
        return real(self, step, abstract)
    Checkpoints._restore_step = seen_by_the_second
    restored = store.restore(jax.eval_shape(lambda: state(1)), sharding)
    assert restored.step == 1
    assert restored.state.params["a"].sharding == sharding
    np.testing.assert_array_equal(np.asarray(restored.state.params["a"].addressable_data(1)), values)
    print(restored.damaged[0])
    assert store.steps() == [1]
    save(2)
    saving.finish()
    assert store.steps() == [1, 2]
else:
    save(1)
    saving.finish()
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    save(2)
    deadline = time.monotonic() + 60
    while not said:
        saving.check()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    print(said[0])
    save(3)
    saving.finish()
    assert store.steps() == [1, 3]
store.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("damage", ["checkpoints/2 is damaged: here (process 1)", "checkpoints/2 is damaged: here"]),
        ("full disk", ["checkpoints: File too large; intact checkpoints: 1 (failure 1 of"] * 2),
    ],
)
def test_two_processes_agree(what, said, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _WORKER, str(i), address, str(tmp_path), what],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()},
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        for process, line in zip(processes, said, strict=True):
            out, err = process.communicate(timeout=180)
            assert process.returncode == 0, err
            assert line in out
    finally:
        for process in processes:
            process.kill()
    if what == "damage":
        assert [path.name for path in (tmp_path / "damaged_checkpoints").iterdir()] == ["2"]
    else:
        assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3"]
