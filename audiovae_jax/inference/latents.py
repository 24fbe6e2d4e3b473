"""`Latents`: encoded audio, in memory and on disk."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from audiovae_jax.errors import CheckpointError, DataError, printable, whole_number
from audiovae_jax.inference.latent_records import DTYPES
from audiovae_jax.persistence.locate import LATENTS_KEY
from audiovae_jax.storage import atomic

_FORMAT = 1


@dataclasses.dataclass(frozen=True)
class Latents:
    """Calibrated latents, and what restores the shape and rate of the audio.

    Attributes:
      z: `[lanes, frames, latent_dim]` float32. A lane is an item of a batch, or a channel that a mono model encodes
        separately.
      model: fingerprint of the model that encoded them.
      hop_length: samples per frame, at `model_sample_rate`.
      model_sample_rate: sample rate of the model in Hz.
      sample_rate: sample rate of the audio in Hz.
      length: length of the audio, in samples at `sample_rate`.
      channels: channels of the audio.
      batch: size of the audio's batch; None if the audio has no batch axis.
      flat: whether the audio has no channel axis.

    Raises:
      DataError: a count or a rate is not an integer.
    """

    z: np.ndarray
    model: str
    hop_length: int
    model_sample_rate: int
    sample_rate: int
    length: int
    channels: int
    batch: int | None = None
    flat: bool = False

    def __post_init__(self):
        for name in ("hop_length", "model_sample_rate", "sample_rate", "length", "channels", "batch"):
            if (value := getattr(self, name)) is not None or name != "batch":
                object.__setattr__(self, name, whole_number(value, name, DataError))
        object.__setattr__(self, "flat", bool(self.flat))

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        """Return `z`."""
        return np.array(self.z, dtype, copy=copy)

    def save(self, path: str | Path, storage_dtype: str = "float32"):
        """Write a `.safetensors` file atomically.

        Args:
          path: path of the file.
          storage_dtype: "float32", "float16" or "bfloat16", the dtype of `z` in the file.

        Raises:
          DataError: the file cannot be written, or `load` would reject it.
        """
        path = Path(path)
        self._require_consistent(f"{printable(path)} was not written")
        described = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "z"}
        metadata = {LATENTS_KEY: json.dumps({"format": _FORMAT, **described})}
        if storage_dtype not in DTYPES:
            raise DataError(f"storage_dtype={storage_dtype!r} must be one of {', '.join(DTYPES)}")
        with np.errstate(over="ignore"):
            z = np.ascontiguousarray(self.z).astype(DTYPES[storage_dtype])
        if not np.isfinite(z.astype(np.float32)).all():
            raise DataError(f"{printable(path)} was not written: z has values that are not finite in {storage_dtype}")
        try:
            with atomic.replacing(path) as temporary:
                safetensors.numpy.save_file({"z": z}, temporary, metadata=metadata)
        except OSError as error:
            raise DataError(f"{printable(path)} was not written: {error.strerror or error}") from error
        except safetensors.SafetensorError as error:  # for example, a full disk
            raise DataError(f"{printable(path)} was not written: {error}") from error

    @classmethod
    def load(cls, path: str | Path) -> "Latents":
        """Read a file that `save` wrote.

        Raises:
          DataError: the file is missing, damaged, or contains no latents.
        """
        return cls._read(path, lambda file: file.get_tensor("z"))

    @classmethod
    def describe(cls, path: str | Path) -> "Latents":
        """Read only the metadata; `z` is all 0, has the right shape and takes no memory.

        Raises:
          DataError: the file is missing, damaged, or contains no latents.
        """
        return cls._read(path, lambda file: np.broadcast_to(np.float32(0), file.get_slice("z").get_shape()))

    @classmethod
    def _read(cls, path, z_of):
        name = printable(path)
        try:
            with safetensors.safe_open(path, framework="numpy") as file:
                text = (file.metadata() or {}).get(LATENTS_KEY)
                z = z_of(file) if text is not None else None
                if z is not None and z.dtype != np.float32 and z.dtype in DTYPES.values():
                    z = z.astype(np.float32)
        except FileNotFoundError:
            raise DataError(f"{name}: there is no such file") from None
        except (OSError, safetensors.SafetensorError, AttributeError, TypeError, ValueError) as error:
            # The last three are raised for dtypes that numpy does not have.
            raise DataError(f"{name} cannot be read as latents: {error}") from error
        if text is None:
            raise DataError(f"{name} contains no latents: its metadata has no {LATENTS_KEY}")
        try:
            described = json.loads(text)
            if described.pop("format") != _FORMAT:
                raise DataError(f"its format is not the one that this version reads ({_FORMAT})")
            latents = cls(z=z, **described)
        except (AttributeError, KeyError, RecursionError, TypeError, ValueError, DataError) as error:
            raise DataError(f"{name}: its metadata is damaged ({type(error).__name__}: {error})") from error
        latents._require_consistent(f"{name}: its metadata is damaged")
        return latents

    def _require_consistent(self, otherwise):
        lanes = (self.batch or 1) * self.channels
        if self.z.ndim != 3 or self.z.dtype != np.float32 or 0 in self.z.shape or lanes % len(self.z):
            raise DataError(
                f"{otherwise} (z is {self.z.dtype}{list(self.z.shape)}, of {lanes} channels; it must be float32 "
                "[lanes, frames, latent_dim])"
            )
        if not isinstance(self.model, str):
            raise DataError(f"{otherwise} (model={self.model!r} is not a fingerprint)")


def require_model(latents: Latents, fingerprint: str, what: str):
    """Raise CheckpointError unless a model with this fingerprint made the latents."""
    if latents.model != fingerprint:
        raise CheckpointError(
            f"{what} were encoded by another model (fingerprint {latents.model}, this one is {fingerprint}); "
            "decode them with that model, or allow this one (allow_other_model)"
        )
