"""Data benchmark: how fast the input pipeline delivers batches on its own."""

import concurrent.futures
import itertools
import time

import ml_collections
import numpy as np

from audiovae_jax.data.audio import audio_file
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.errors import ConfigError
from audiovae_jax.performance.benchmark import measure

WHOLE = "whole"  # value of `--against`: decode the whole file, then cut the crop out


def run(config: ml_collections.ConfigDict, *, against: list[str], repeats: int, warmup: int) -> dict:
    """Time the training batches of `config.data`.

    Args:
      config: of the run.
      against: `[WHOLE]` to compare with decoding whole files in as many threads, or empty.
      repeats: measured rounds.
      warmup: rounds before them.

    Returns:
      A report: `ours` with the time of a batch, `items_per_second`, and `bytes_per_second` of float32 audio.
    """
    start = time.perf_counter()
    data = pipeline.open_data(config.data, batch_size=config.batch_size, seed=config.seed)
    opened = time.perf_counter() - start
    # Rounds long enough that batches prefetched during warm-up hardly matter.
    per_round = 2 * config.data.prefetch_batches
    batches = pipeline.batches(
        data.train,
        batch_size=config.batch_size,
        start_step=0,
        num_steps=2 * per_round * (repeats + warmup),  # `side_by_side` runs each round twice
        num_threads=config.data.num_threads,
        prefetch_batches=config.data.prefetch_batches,
    )

    def once():
        start = time.perf_counter()
        for _ in range(per_round):
            next(batches)
        return (time.perf_counter() - start) / per_round

    work = {"ours": once}
    if against:
        if data.catalog is None:
            raise ConfigError(f"--against={WHOLE} needs files: set config.data.root")
        work[WHOLE] = _whole_files(data.catalog.train, config)
    timings = measure.side_by_side(work, repeats=repeats, warmup=warmup)
    timing = timings["ours"]
    items = config.batch_size / timing.median
    source = "the built-in generator" if data.catalog is None else f"{len(data.catalog.train)} {data.catalog.origin}"
    report = {
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
    if against:
        whole = timings[WHOLE]
        report[WHOLE] = whole.summary() | {"items_per_second": config.batch_size / whole.median}
        report["ratios"] = {WHOLE: timing.over(whole)}
    return report


def _whole_files(tracks, config):
    """Return a function that times decoding a batch's worth of whole files.

    It decodes one whole file per crop of a batch, and cuts the crop out.
    """
    numbers = itertools.count()

    def crop(number):
        rng = np.random.default_rng(number)
        audio = tracks[rng.integers(len(tracks))].audio
        whole = audio_file.adapt_channels(audio.read(0, audio.frames), config.data.channels, audio.speakers)
        if audio.sample_rate != config.data.sample_rate:
            whole = audio_file.resample(whole, audio.sample_rate, config.data.sample_rate)
        start = int(rng.random() * max(0, len(whole) - config.data.crop_length))
        return whole[start : start + config.data.crop_length]

    pool = concurrent.futures.ThreadPoolExecutor(config.data.num_threads)

    def once():
        start = time.perf_counter()
        list(pool.map(crop, itertools.islice(numbers, config.batch_size)))
        return time.perf_counter() - start

    return once
