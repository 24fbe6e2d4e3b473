"""Latent statistics from data: with them set, encoded audio has zero mean and unit variance per channel."""

from pathlib import Path

import numpy as np
import tqdm

from audiovae_jax.data.audio import files
from audiovae_jax.data.audio.audio_file import EXTENSIONS
from audiovae_jax.errors import DataError
from audiovae_jax.inference.codec import Codec
from audiovae_jax.persistence import saved_model


class RunningMoments:
    """Mean and variance per channel of blocks that come one by one, merged stably (Chan et al., 1983)."""

    def __init__(self, width: int):
        self.count = 0
        self.mean = np.zeros(width)
        self._squares = np.zeros(width)

    def add(self, values: np.ndarray):
        """Take in `values: [..., width]`."""
        values = values.reshape(-1, values.shape[-1]).astype(np.float64)
        count = self.count + len(values)
        mean = values.mean(axis=0)
        difference = mean - self.mean
        self._squares += np.square(values - mean).sum(axis=0)
        self._squares += np.square(difference) * self.count * len(values) / count
        self.mean += difference * len(values) / count
        self.count = count

    @property
    def std(self) -> np.ndarray:
        """The standard deviation of all values so far, not of a sample's parent."""
        return np.sqrt(self._squares / max(1, self.count))


def calibrate(path: str, data_root: str, target: str, *, limit: int | None = None, verify: bool = False, **options):
    """Set a model's latent statistics to those of a folder of audio, and print the spread before and after.

    Args:
      path: whatever `load_model` takes.
      data_root: a folder of audio files at any depth; those that cannot be used are named.
      target: a saved model to write; `path` itself, if that is a saved model, to set them there.
      limit: of files.
      verify: measure the spread afterwards by encoding once more, in place of deriving it.
      **options: for `Codec.load`.

    Raises:
      DataError: no usable audio, or a latent channel that never changes.
      CheckpointError: the model cannot be read or written.
    """
    saved_model.require_target(target)
    root = Path(data_root)
    found = files.find(root, EXTENSIONS) if root.is_dir() else [root] if root.is_file() else []
    found = found[:limit]
    if not found:
        raise DataError(f"{data_root} holds no audio file; looked for {' '.join(EXTENSIONS)} at any depth")
    codec = Codec.load(path, **options)
    moments = _measure(codec, found)
    if moments.count < 2:
        raise DataError(f"{data_root}: {moments.count} latent frames are too few to calibrate with")
    constant = np.flatnonzero(moments.std < 1e-6)
    if len(constant):
        raise DataError(
            f"latent channels {', '.join(map(str, constant[:10]))} are constant over {data_root}; "
            "they hold nothing, and cannot be scaled to unit variance"
        )
    old = {name: np.asarray(value, np.float64) for name, value in codec.variables["latent_statistics"].items()}
    before = ((moments.mean - old["latent_mean"]) / old["latent_std"], moments.std / old["latent_std"])
    saved_model.with_latent_statistics(
        path, target, moments.mean, moments.std, {"calibrated_on": str(data_root), "calibration_frames": moments.count}
    )
    after = ((moments.mean - moments.mean) / moments.std, moments.std / moments.std)
    if verify:
        again = Codec.load(target, **options)
        statistics = {name: np.asarray(value) for name, value in again.variables["latent_statistics"].items()}
        measured = _measure(again, found, statistics)
        after = (measured.mean, measured.std)
    print(f"{len(found)} files, {moments.count:,} latent frames of {codec.model.hop_length} samples")
    _print_table(before, after, "measured" if verify else "derived")
    print(f"written to {target}")


def _measure(codec, paths, statistics=None):
    moments = RunningMoments(codec.model.latent_dim)
    for path in tqdm.tqdm(paths, unit="file", dynamic_ncols=True):
        try:
            for mean in codec.posteriors(path):
                if statistics is not None:
                    mean = (mean - statistics["latent_mean"]) / (statistics["latent_std"] + 1e-8)
                moments.add(mean)
        except DataError as error:
            tqdm.tqdm.write(f"skipped {error}")
    return moments


def _print_table(before, after, how):
    """Mean and variance of each channel, before and after."""
    print(f"channel  mean before  variance before  mean after  variance after ({how})")
    for channel, (m0, s0, m1, s1) in enumerate(zip(*before, *after, strict=True)):
        print(f"{channel:7d}  {m0:11.4f}  {s0**2:15.4f}  {m1:10.4f}  {s1**2:14.4f}")
    for when, (mean, std) in (("before", before), ("after", after)):
        print(f"{when}: |mean| at most {np.abs(mean).max():.4f}, variance {(std**2).min():.4f} to {(std**2).max():.4f}")
