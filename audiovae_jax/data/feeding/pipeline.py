"""The data pipeline, which reads batches ahead in threads.

Every host reads its rows of each global batch. The step is the only state of the pipeline. Record `step * batch_size +
row` is row `row` of step `step`, for any number of hosts and threads.
"""

import collections
import dataclasses
import functools
import math
import os
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

import grain
import numpy as np

from audiovae_jax.data.audio import block_cache, levels, remote
from audiovae_jax.data.feeding import crops
from audiovae_jax.data.feeding.augment import Augment
from audiovae_jax.data.feeding.crops import CropFormat, Crops
from audiovae_jax.data.feeding.health import Health
from audiovae_jax.data.sets import catalog, probing, sources
from audiovae_jax.data.sets.bandwidth import balanced
from audiovae_jax.data.sets.catalog import Catalog, Track
from audiovae_jax.errors import ConfigError, RootError
from audiovae_jax.storage.bucket_path import BucketPath


@dataclasses.dataclass(frozen=True)
class Data:
    """A run's audio.

    Attributes:
      train: unlimited training crops, `train[index] -> [T, C]`.
      validation: fixed validation crops.
      samples: excerpts of validation audio for listening, each `[T, C]` of `sample_seconds`, padded with zeros. Once an
        excerpt was read, `samples.origin(index)` gives its length without padding. With `fixed_batch`, the training
        crops.
      catalog: the tracks, or None for the built-in generator.
      fingerprint: identifies the audio, to detect on resumption that it has changed.
      health: health of the files, or None for the built-in generator.
    """

    train: Crops
    validation: Crops
    samples: Crops
    catalog: Catalog | None
    fingerprint: str
    health: Health | None


def open_data(
    config,
    *,
    batch_size: int,
    seed: int,
    leave_out: Collection[Path | BucketPath] = (),
    warn: Callable[[str], None] = warnings.warn,
) -> Data:
    """Open the training and validation crops of `config.data`.

    Args:
      config: the section `config.data`.
      batch_size, seed: batch size and seed of the run.
      leave_out: folders to ignore under the data's root, such as the run's workdir with its samples.
      warn: called with a text for each file that later turns out to be bad.

    Raises:
      ConfigError: a value is invalid.
      DataError: no usable audio was found.
    """
    found = open_catalog(config, leave_out)
    crop = CropFormat(
        config.crop_length, config.sample_rate, config.channels, config.peak_normalize,
        loop=config.padding == "loop", min_loudness_db=config.min_loudness_db,
    )  # fmt: skip
    excerpt = dataclasses.replace(crop, length=round(config.sample_seconds * config.sample_rate), loop=False)
    augment = Augment(**config.augment.to_dict())
    changes = {
        "augment": None if augment == Augment() else augment,  # so that no random numbers are drawn in vain
        "period": batch_size if config.fixed_batch else None,
    }
    if found is None:
        health = None
        train = crops.SyntheticCrops(format=crop, seed=seed, **changes)
        validation, samples = (crops.SyntheticCrops(format=each, validation=True) for each in (crop, excerpt))
    else:
        names = {track.audio.name for track in (*found.train, *found.validation)} | {name for name, _ in found.skipped}
        health = Health(len(names), found.skipped, config.max_bad_share, names, warn)
        reading = {"health": health, "read_timeout": read_timeout(config, found)}
        train = crops.RandomCrops(format=crop, tracks=found.train, seed=seed, **changes, **reading)
        fixed = functools.partial(crops.FixedCrops, tracks=found.validation, **reading)
        validation = fixed(format=crop, count=config.validation_crops)
        samples = fixed(format=excerpt, count=config.num_samples, spread=True)
    if config.fixed_batch:
        validation = samples = train
    return Data(train, validation, samples, found, found.fingerprint if found else "built-in", health)


def open_catalog(config, leave_out: Collection[Path | BucketPath] = ()) -> Catalog | None:
    """Return the tracks under the roots or the mix of `config.data`.

    Args:
      config: the section `config.data`.
      leave_out: folders to ignore, see `open_data`.

    Returns:
      The catalog, or None if neither a root nor a mix is set (built-in generator only).

    Raises:
      ConfigError: a value is invalid.
      DataError: no usable audio was found.
    """
    if config.root is None and not config.mix:
        return None
    options = probing_options(config, leave_out)
    roots = [root for root, _ in config.mix] if config.mix else sources.split_roots(config.root)
    held_out = sources.split_roots(config.val_root) if config.val_root is not None else []
    _require_apart([root for root in roots if root != _GENERATOR], held_out)
    opened = functools.partial(_open, options=options, config=config)
    parts = [opened(root, config.source, others=held_out) for root in roots]
    held = []
    if held_out:
        try:
            held = [opened(root, sources.AUTO, others=roots) for root in held_out]
        except RootError as error:
            error.key = "config.data.val_root"
            raise
        parts = [catalog.all_to_train(part) for part in parts]
    parts = [
        catalog.without_validated(part, _validated([*parts[:i], *parts[i + 1 :]], held)) for i, part in enumerate(parts)
    ]
    if config.mix:
        weights = [float(weight) for _, weight in config.mix]
        found = catalog.mixed(list(zip(parts, weights, strict=True)), config.crop_length / config.sample_rate)
    else:
        found = catalog.joined(parts)
    if held:
        found = catalog.validated_on(found, catalog.joined(held))
    if config.full_band_share is not None:
        train = balanced(
            found.train, config.full_band_share, config.sample_rate, options, origin=str(config.mix or config.root),
            crop_seconds=config.crop_length / config.sample_rate,
        )  # fmt: skip
        found = dataclasses.replace(found, train=train)
    return found


def probing_options(config, leave_out: Collection[Path | BucketPath] = ()) -> probing.Options:
    """Return the options of finding and probing files; see `open_catalog`."""
    cache = None
    if config.cache is not None:
        cache = block_cache.BlockCache(config.cache, int(config.cache_gigabytes * 1e9))
    return probing.Options(
        channels=config.channels,
        min_seconds=config.min_seconds,
        num_threads=config.num_threads,
        read_timeout=config.read_timeout,
        index_folder=index_folder() if config.index else None,
        access=remote.Access(config.retry_seconds, cache),
        leave_out=tuple(leave_out),
        # Normalization corrects any scale. Without it, the loss of such a file would exceed that of all others.
        max_peak=math.inf if config.peak_normalize else levels.INTEGERS,
    )


def read_timeout(config, found: Catalog | None) -> float:
    """Return the seconds until a read of a file of `found` times out.

    0 means no timeout.
    """
    tracks = () if found is None else (*found.train, *found.validation)
    # The tracks' names decide instead of the root's, since a local manifest may list URLs.
    return remote.read_timeout(config.read_timeout, config.retry_seconds, (track.audio.name for track in tracks))


def index_folder() -> Path:
    """Return the folder that caches probing results, in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "audiovae_jax" / "index"


def batches(
    records,
    *,
    batch_size: int,
    start_step: int,
    num_steps: int,
    num_threads: int,
    prefetch_batches: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.DatasetIterator[np.ndarray]:
    """Iterate over this host's batches from `start_step` to `num_steps`.

    Each batch is `[batch_size / process_count, T, C]`. Threads read whole batches ahead, at most `prefetch_batches`.
    `close` of the iterator ends them, without waiting for a read.

    `records` are `Crops`, or another object with records by index.
    """
    local = batch_size // process_count
    read = records.batch if isinstance(records, Crops) else functools.partial(crops.stack, records.__getitem__)

    def batch(step):
        first = step * batch_size + process_index * local  # the first record of this host's rows
        return read(range(first, first + local))

    dataset = grain.MapDataset.range(start_step, num_steps).map(batch)
    options = grain.ReadOptions(
        num_threads=min(num_threads, prefetch_batches), prefetch_buffer_size=max(1, prefetch_batches)
    )
    return iter(dataset.to_iter_dataset(options))


_GENERATOR = "built-in"  # name of the built-in generator as a root of a mix


def _open(root, source, *, options, config, others):
    """Return the catalog of a root, without the files under other roots inside it."""
    if root == _GENERATOR:
        track = Track(_GENERATOR, crops.Generated())
        return Catalog((track,), (track,), (), _GENERATOR, "the built-in generator")
    inside = sources.within(root, [other for other in others if other != _GENERATOR])
    options = dataclasses.replace(options, leave_out=(*options.leave_out, *inside))
    return sources.open_root(root, source, options, config)


def _validated(others, held):
    """Yield the validation tracks of training roots, and all of held-out roots."""
    yield from (track for other in others if other.fingerprint != _GENERATOR for track in other.validation)
    yield from (track for part in held for track in part.train + part.validation)


def _require_apart(roots, held_out):
    """Raise ConfigError if a training root is repeated or is also a validation root."""
    trained_on = collections.Counter(sources.place(root) for root in roots)
    for root in roots:
        if trained_on[sources.place(root)] > 1:
            raise ConfigError(f"config.data: the root {root} is named twice; name it once, or give it a larger weight")
    for root in held_out:
        if sources.place(root) in trained_on:
            raise ConfigError(
                f"config.data.val_root={root} is also a training root; give another folder, or leave it out"
            )
