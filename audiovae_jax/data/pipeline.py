"""Feeds steps: threads read ahead, every host its own rows of every global batch.

The pipeline's whole state is the step: record `step * batch_size + row` belongs to row `row` of step
`step`, whatever the number of hosts or threads.
"""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np

from audiovae_jax.data import source
from audiovae_jax.data.source import CropFormat, DataFolder


@dataclasses.dataclass(frozen=True)
class Data:
    """A run's audio.

    Attributes:
      train: endless training records, `train[index] -> [T, C]`.
      validation: fixed validation records.
      folder: what the files are, or None for the built-in generator.
      fingerprint: of the audio, to tell on resumption whether it is still the same.
    """

    train: Any
    validation: Any
    folder: DataFolder | None
    fingerprint: str


def open_data(config, *, batch_size: int, seed: int, leave_out: Collection[Path] = ()) -> Data:
    """The training and validation records of `config.data`.

    Args:
      config: that section.
      batch_size, seed: of the run.
      leave_out: folders under the data's root that are none of it, as a run's own workdir with its samples.

    Raises:
      DataError: the folder holds nothing usable.
    """
    crop = CropFormat(config.crop_length, config.sample_rate, config.channels, config.peak_normalize)
    if config.root is None:
        folder, fingerprint = None, "built-in"
        train = source.SyntheticCrops(crop, seed)
        validation = source.SyntheticCrops(crop, seed, validation=True)
    else:
        folder = source.scan(
            config.root,
            validation_fraction=config.validation_fraction,
            min_seconds=config.min_seconds,
            channels=config.channels,
            num_threads=config.num_threads,
            leave_out=leave_out,
        )
        fingerprint = folder.fingerprint
        train = source.FileCrops(folder.train, crop, seed)
        validation = source.FixedFileCrops(folder.validation, crop)
    if config.fixed_batch:
        train = validation = source.Repeated(train, batch_size)
    return Data(train, validation, folder, fingerprint)


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
) -> Iterator[np.ndarray]:
    """This host's `[batch_size / process_count, T, C]` of every step from `start_step` to `num_steps`.

    Threads read whole batches ahead, at most `prefetch_batches`.
    """
    local = batch_size // process_count
    rows = _HostRows(records, batch_size, local, process_index * local, num_steps)
    dataset = grain.MapDataset.source(rows).batch(local)[start_step:]
    options = grain.ReadOptions(
        num_threads=min(num_threads, prefetch_batches), prefetch_buffer_size=max(1, prefetch_batches)
    )
    return iter(dataset.to_iter_dataset(options))


class _HostRows:
    """A contiguous block of rows of every global batch, as one sequence."""

    def __init__(self, records, batch_size, local, first, num_steps):
        self._records, self._batch_size, self._local = records, batch_size, local
        self._first, self._num_steps = first, num_steps

    def __len__(self):
        return self._num_steps * self._local

    def __getitem__(self, index):
        step, row = divmod(index, self._local)
        return self._records[step * self._batch_size + self._first + row]
