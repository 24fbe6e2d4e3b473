"""Computes latent statistics from data.

With these statistics, the latents of that audio have zero mean and unit variance per channel.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from audiovae_jax.data.audio import files, stream
from audiovae_jax.data.audio.audio_file import EXTENSIONS
from audiovae_jax.errors import DataError
from audiovae_jax.inference.codec import Codec
from audiovae_jax.persistence import model_folder, saved_model

_MIN_TO_SPLIT, _MIN_HELD_OUT = 10, 3  # files


class RunningMoments:
    """Running mean and variance per channel, merged stably (Chan et al., 1983)."""

    def __init__(self, width: int):
        self.count = 0
        self.mean = np.zeros(width)
        self._squares = np.zeros(width)

    def add(self, values: np.ndarray):
        """Update the moments with `values: [..., width]`."""
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
        """Return the population standard deviation, without Bessel's correction."""
        return np.sqrt(self._squares / max(1, self.count))


@dataclasses.dataclass(frozen=True)
class Spread:
    """Measured statistics of the calibrated latents of some files.

    Attributes:
      files: files that were read.
      skipped: reasons why other files were skipped, with their names.
      frames: number of latent frames.
      mean, std: per channel, `[latent_dim]`.
    """

    files: tuple[Path, ...]
    skipped: tuple[str, ...]
    frames: int
    mean: np.ndarray
    std: np.ndarray


@dataclasses.dataclass(frozen=True)
class Calibration:
    """The measurements of `calibrate`.

    Attributes:
      hop_length: samples per latent frame.
      before: statistics of the calibration files with the original model.
      after: statistics of the held-out files with the written model; None if not requested. If no files were held
        out, the files of `before` are measured again.
      held_out: whether `after` is of other files than `before`.
    """

    hop_length: int
    before: Spread
    after: Spread | None
    held_out: bool


def calibrate(
    path: str,
    data_root: str,
    target: str,
    *,
    limit: int | None = None,
    verify: bool = False,
    progress: Callable[[Sequence[Path]], Iterable[Path]] = iter,
    **options,
) -> Calibration:
    """Write a copy of a model with the latent statistics of a folder of audio.

    Args:
      path: any path that `load_model` accepts. It is read once, so a training run there may continue.
      data_root: a folder of audio files at any depth, or one file. The result lists unusable files.
      target: the saved model to write. If `path` is a saved model, it can be `path` itself.
      limit: maximum number of files.
      verify: hold out a tenth of the files, at least three, and measure the written model on them. With fewer than
        ten files, it is measured on the calibration files.
      progress: iterates over the files, and may show progress.
      **options: options for `Codec.of`.

    Raises:
      DataError: there is no usable audio, or a latent channel is constant.
      CheckpointError: the model cannot be read or written.
    """
    model_folder.require_target(target)
    root = Path(data_root)
    found = files.find(root, EXTENSIONS) if root.is_dir() else [root] if root.is_file() else []
    found = found[:limit]
    if not found:
        raise DataError(f"{data_root} contains no audio file; looked for {' '.join(EXTENSIONS)} at any depth")
    used, held_out = _split(found) if verify else (found, [])
    loaded = saved_model.open_model(path, training=True)
    codec = Codec.of(loaded, path, **options)
    moments, read, skipped = _measure(codec, progress(used), lambda posterior: posterior.mean)
    if moments.count < 2:
        raise DataError(f"{data_root}: {moments.count} latent frames are too few to calibrate with")
    constant = np.flatnonzero(moments.std < 1e-6)
    if len(constant):
        raise DataError(
            f"latent channels {', '.join(map(str, constant[:10]))} are constant over {data_root}; "
            "they carry no information, and cannot be scaled to unit variance"
        )
    old = {name: np.asarray(value, np.float64) for name, value in loaded.variables["latent_statistics"].items()}
    mean, std = (moments.mean - old["latent_mean"]) / old["latent_std"], moments.std / old["latent_std"]
    before = Spread(read, skipped, moments.count, mean, std)
    statistics = {"latent_mean": moments.mean.astype(np.float32), "latent_std": moments.std.astype(np.float32)}
    calibrated = dataclasses.replace(
        loaded,
        variables={**loaded.variables, "latent_statistics": statistics},
        sample_rate=loaded.sample_rate or options.get("sample_rate"),
        metadata={**loaded.metadata, "calibrated_on": str(data_root), "calibration_frames": moments.count},
    )
    saved_model.save_loaded(calibrated, target)
    after = _verify(target, progress(held_out or used), options) if verify else None
    return Calibration(codec.model.hop_length, before, after, bool(held_out))


def _split(found):
    """Return `(files to calibrate on, held-out files)`.

    Held-out files are evenly spaced. With fewer than ten files, none are held out.
    """
    if len(found) < _MIN_TO_SPLIT:
        return found, []
    count = max(_MIN_HELD_OUT, len(found) // 10)
    held_out = [found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)]
    return [path for path in found if path not in set(held_out)], held_out


def _verify(target, paths, options):
    codec = Codec.load(target, **options)
    moments, read, skipped = _measure(codec, paths, lambda posterior: posterior.z)
    if not moments.count:
        raise DataError(f"{target} was written, but not verified: none of the held-out files can be used")
    return Spread(read, skipped, moments.count, moments.mean, moments.std)


def _measure(codec, paths, values):
    """Return `(moments of values(posterior), files read, reasons for skipped files)`."""
    moments, read, skipped = RunningMoments(codec.model.latent_dim), [], []
    for path in paths:
        try:
            for posterior in codec.stream(stream.open_file(path), mix=True).posteriors:
                moments.add(values(posterior))
            read.append(path)
        except DataError as error:
            skipped.append(str(error))
    return moments, tuple(read), tuple(skipped)
