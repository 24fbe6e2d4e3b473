"""Feeding: how fast batches come, with nothing else to do."""

import time

import ml_collections

from audiovae_jax.benchmark import measure
from audiovae_jax.feeding import pipeline


def run(config: ml_collections.ConfigDict, *, repeats: int, warmup: int) -> dict:
    """Time the training batches of `config.data`.

    Returns:
      A report: `ours` with the time of a batch, `items_per_second`, and `bytes_per_second` of float32 audio.
    """
    start = time.perf_counter()
    data = pipeline.open_data(config.data, batch_size=config.batch_size, seed=config.seed)
    opened = time.perf_counter() - start
    # Long enough that what was read ahead during warm-up does not count for much.
    per_round = 2 * config.data.prefetch_batches
    batches = pipeline.batches(
        data.train,
        batch_size=config.batch_size,
        start_step=0,
        num_steps=2 * per_round * (repeats + warmup),  # each round is done twice
        num_threads=config.data.num_threads,
        prefetch_batches=config.data.prefetch_batches,
    )

    def once():
        start = time.perf_counter()
        for _ in range(per_round):
            next(batches)
        return (time.perf_counter() - start) / per_round

    timing = measure.side_by_side({"ours": once}, repeats=repeats, warmup=warmup)["ours"]
    items = config.batch_size / timing.median
    source = "the built-in generator" if data.catalog is None else f"{len(data.catalog.train)} {data.catalog.origin}"
    return {
        "benchmark": "data",
        "machine": measure.machine(),
        "what": f"batches of {config.batch_size} x {config.data.crop_length} samples of {source}, "
        f"{config.data.num_threads} threads",
        "ours": timing.summary()
        | {
            "items_per_second": items,
            "bytes_per_second": 4 * items * config.data.crop_length * config.data.channels,
            "opening_seconds": opened,
        },
    }
