"""One process of a run, as tests start it. It records each step's batch next to the workdir.

`python process_worker.py TOLD`, a dict: `workdir`, `config`, `devices`, `join` and `train` (arguments of
`launch.joined` and `train.train`), `record` (a file), and optionally `fail_at` (a step whose batch this
process cannot read), `hang_at` (a step whose batch a thread reads for ever), `stop_at` (a step after which it gets
SIGTERM), `hang` (where this process hangs, and after how many calls), `slow_reads` (seconds that each batch takes
longer here), `slow` (whether it is the step with discriminator that takes minutes to compile, or the one without) and
`run_cache` (whether the compilation cache is the run's, as in the command; see `watch_compilation`).
"""

import ast
import ctypes
import hashlib
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import ml_collections
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from audiovae_jax.commands import process, training
from audiovae_jax.data.feeding import crops, pipeline
from audiovae_jax.data.feeding.stalls import StallMeter
from audiovae_jax.distributed import background, launch, mesh
from audiovae_jax.errors import DataError, UserError
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import loop, reporter, train
from audiovae_jax.storage import array_store
from audiovae_jax.training import compilation, program


def hashes(rows):
    """Return a hash of each row of a batch, `[b, T, C]`."""
    return [hashlib.sha256(np.ascontiguousarray(row).tobytes()).hexdigest()[:16] for row in rows]


def watch_compilation():
    """Return a dict that counts requests to the cache of programs, hits, and seconds of compiling or loading."""
    seen = {"requests": 0, "hits": 0, "seconds": 0.0}
    cache = "/jax/compilation_cache"
    events = {f"{cache}/compile_requests_use_cache": "requests", f"{cache}/cache_hits": "hits"}

    def count(event, **_):
        if event in events:
            seen[events[event]] += 1

    def add(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            seen["seconds"] += seconds

    jax.monitoring.register_event_listener(count)
    jax.monitoring.register_event_duration_secs_listener(add)
    return seen


def slow_to_compile(map_step, slow):
    """Return a `map_step` that takes minutes to compile, with or without the discriminator as set by `slow`."""

    def compiled(lowered):
        print("worker: compiling", flush=True)
        end = time.monotonic() + 300
        while time.monotonic() < end:
            ctypes.CDLL(None).sleep(300)  # in C, where Python cannot interrupt it
        return lowered.compile()

    def mapped(recipe, devices, adversarial):
        function = map_step(recipe, devices, adversarial)
        if adversarial != slow:
            return function
        return SimpleNamespace(lower=lambda *args: SimpleNamespace(compile=lambda: compiled(function.lower(*args))))

    return mapped


def hanging_batch(read, batch_size, hang_at):
    """Return a `Crops.batch` that never returns the batch of step `hang_at`."""

    def batch(self, indices):
        if indices[0] // batch_size == hang_at:
            print("worker: a read hangs", flush=True)
            while True:
                ctypes.CDLL(None).sleep(300)
        return read(self, indices)

    return batch


PLACES = {
    "step": (reporter.Reporter, "step"),
    "read": (StallMeter, "next"),
    "save": (Checkpoints, "save"),
    "restore": (Checkpoints, "restore"),
}


def hang(place, calls):
    """Let the call of a place that follows `calls` others never return."""
    owner, name = PLACES[place]
    method, made = getattr(owner, name), itertools.count()

    def hanging(*args, **options):
        if next(made) == calls:
            print(f"worker: hangs in a {place}", flush=True)
            while True:
                time.sleep(1000)
        return method(*args, **options)

    setattr(owner, name, hanging)


def slow_reads(seconds):
    """Let each batch take longer."""
    batches = pipeline.batches

    def slow(*args, **options):
        for rows in batches(*args, **options):
            time.sleep(seconds)
            yield rows

    pipeline.batches = slow


def main():
    told = ast.literal_eval(sys.argv[1])
    jax.config.update("jax_num_cpu_devices", told["devices"])
    compilation.use_cache()
    seen = {"batches": {}, "losses": {}}
    place, show = loop.Loop.next_batch, reporter.Reporter.step

    def _next(self, waiting, step, is_idle=lambda: True):
        number = seen["next"] = seen.get("next", step - 1) + 1
        if number == told.get("fail_at"):
            raise DataError("songs/a.wav: cannot be read any more")
        batch = place(self, waiting, step, is_idle)
        seen["batches"][number] = hashes(mesh.local_rows(batch))
        return batch

    def step(self, done, metrics):
        seen["losses"][done] = {name: value.hex() for name, value in metrics.items()}
        print(f"worker: step {done}", flush=True)
        if done == told.get("stop_at"):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(3)  # several heartbeats, so that the others know of it before the run is over
        show(self, done, metrics)

    loop.Loop.next_batch, reporter.Reporter.step = _next, step
    if "hang" in told:
        hang(*told["hang"])
    if "slow_reads" in told:
        slow_reads(told["slow_reads"])
    if "slow" in told:
        program.map_step = slow_to_compile(program.map_step, told["slow"])
    if "hang_at" in told:
        crops.Crops.batch = hanging_batch(crops.Crops.batch, told["config"]["batch_size"], told["hang_at"])
    with launch.joined(**told["join"], end=process.end):
        config = ml_collections.ConfigDict(told["config"], convert_dict=True)
        if told.get("run_cache"):
            training.use_cache_of(Path(told["workdir"]))
            seen["compilation"] = watch_compilation()
        state = train.train(config, told["workdir"], **told["train"])
        seen |= {"step": int(state.step), "digests": array_store.describe(state)}
    Path(told["record"]).write_text(json.dumps(seen))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        text = f"error: {error}"
        background.leave(1, lambda: print(text, file=sys.stderr))
        sys.exit(text)
    background.leave(0)
