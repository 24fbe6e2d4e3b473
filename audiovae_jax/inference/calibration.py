"""Latent statistics from data: with them set, encoded audio has zero mean and unit variance per channel."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from audiovae_jax.data import files, stream
from audiovae_jax.data.audio_file import EXTENSIONS
from audiovae_jax.errors import DataError
from audiovae_jax.inference.codec import Codec
from audiovae_jax.persistence import model_folder, saved_model

_LEAST_TO_SPLIT, _LEAST_HELD_OUT = 10, 3  # files


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


@dataclasses.dataclass(frozen=True)
class Spread:
    """Calibrated latents of some files, as they were measured.

    Attributes:
      files: those that were read.
      skipped: why others were not, each with its name.
      frames: latent frames.
      mean, std: `[latent_dim]`.
    """

    files: tuple[Path, ...]
    skipped: tuple[str, ...]
    frames: int
    mean: np.ndarray
    std: np.ndarray


@dataclasses.dataclass(frozen=True)
class Calibration:
    """What `calibrate` has measured.

    Attributes:
      hop_length: samples in a latent frame.
      before: the files that the statistics are of, with the model as it was.
      after: the held-out files, with the model as it was written; None if that was not asked for. Without held-out
        files, those of `before`.
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
    """Write a model with the latent statistics of a folder of audio.

    Args:
      path: whatever `load_model` takes; read once, so that a run may go on there meanwhile.
      data_root: a folder of audio files at any depth; those that cannot be used are named in the result.
      target: a saved model to write; `path` itself, if that is a saved model, to set them there.
      limit: of files.
      verify: measure the written model, on a tenth of the files but at least three, which the statistics then are
        not of; on the same files where there are fewer than ten.
      progress: goes through files; may show where it is.
      **options: for `Codec.load`.

    Raises:
      DataError: no usable audio, or a latent channel that never changes.
      CheckpointError: the model cannot be read or written.
    """
    model_folder.require_target(target)
    root = Path(data_root)
    found = files.find(root, EXTENSIONS) if root.is_dir() else [root] if root.is_file() else []
    found = found[:limit]
    if not found:
        raise DataError(f"{data_root} holds no audio file; looked for {' '.join(EXTENSIONS)} at any depth")
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
            "they hold nothing, and cannot be scaled to unit variance"
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
    """`(files to calibrate on, files held out)`; the latter are spread evenly, and none of fewer than ten files."""
    if len(found) < _LEAST_TO_SPLIT:
        return found, []
    count = max(_LEAST_HELD_OUT, len(found) // 10)
    held_out = [found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)]
    return [path for path in found if path not in set(held_out)], held_out


def _verify(target, paths, options):
    codec = Codec.load(target, **options)
    moments, read, skipped = _measure(codec, paths, lambda posterior: posterior.z)
    if not moments.count:
        raise DataError(f"{target} is written, and not verified: no file that was held out can be used")
    return Spread(read, skipped, moments.count, moments.mean, moments.std)


def _measure(codec, paths, values):
    """`(moments, files read, why others were not)` of the values of posteriors."""
    moments, read, skipped = RunningMoments(codec.model.latent_dim), [], []
    for path in paths:
        try:
            for posterior in codec.stream(stream.open_file(path), mix=True).posteriors:
                moments.add(values(posterior))
            read.append(path)
        except DataError as error:
            skipped.append(str(error))
    return moments, tuple(read), tuple(skipped)
