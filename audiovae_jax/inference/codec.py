"""`Codec`: a trained model for use: audio to latents and back, of any length, rate and channel count."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiovae_jax.checks import whole_number
from audiovae_jax.data import audio_file, stream
from audiovae_jax.data.files import printable
from audiovae_jax.data.stream import AudioStream
from audiovae_jax.errors import CheckpointError, DataError
from audiovae_jax.inference import arrays
from audiovae_jax.inference.chunked import ChunkedModel
from audiovae_jax.inference.latents import Latents, require_model
from audiovae_jax.models.audio_vae import AudioVAE, Posterior
from audiovae_jax.persistence import saved_model
from audiovae_jax.storage import array_store

_DEFAULT_RATE = 44100


@dataclasses.dataclass(frozen=True)
class LatentStream:
    """Latents that are computed as they are asked for.

    Attributes:
      posteriors: consecutive `(z, mean, logvar)`, each `[n, lanes, latent_dim]`; `z` is calibrated.
      frames: in all.
      lanes: one, or one per channel for a mono model.
      channels: of the audio that they decode to.
    """

    posteriors: Iterator[Posterior]
    frames: int
    lanes: int
    channels: int


class Codec:
    """A model ready for use, with weight norm folded and chunked inference that is exact.

    Args:
      model, variables: as `load_model` gives them.
      sample_rate: in Hz, of the audio that the model is for.
      dtype: what the convolutions compute in; by default the model's.
      chunk_length: samples that one window of inference gives; the result does not depend on it.
      batch_size: windows computed at once; by default one per device on a CPU, eight elsewhere.

    Raises:
      DataError: a number that cannot be.

    Attributes:
      model, variables: the folded module and its variables.
      sample_rate: in Hz.
      fingerprint: sixteen hex digits, the same for the same weights and architecture.
    """

    def __init__(
        self,
        model: AudioVAE,
        variables: dict,
        *,
        sample_rate: int = _DEFAULT_RATE,
        dtype: Any = None,
        chunk_length: int | None = None,
        batch_size: int | None = None,
    ):
        if dtype is not None:
            model = model.clone(dtype=dtype)
        variables = jax.tree.map(np.asarray, dict(variables))
        self.model, folded = model.folded(variables)
        self.variables = jax.device_put(folded)
        self.sample_rate = whole_number(sample_rate, "sample_rate", DataError, most=arrays.MAX_RATE)
        self.fingerprint = self.fingerprint_of(model, variables)
        self._chunked = ChunkedModel(self.model, self.variables, chunk_length=chunk_length, batch_size=batch_size)

    @property
    def windows(self) -> dict[str, Any]:
        """What rounding depends on, see `ChunkedModel.windows`."""
        return self._chunked.windows

    @classmethod
    def load(
        cls, path: str | Path, *, step: int | None = None, sample_rate: int | None = None, **options: Any
    ) -> "Codec":
        """The codec of whatever `load_model` takes.

        Args:
          path, step: see `load_model`.
          sample_rate: in Hz, where the file does not tell it; 44,100 is assumed, with a warning.
          **options: `dtype`, `chunk_length`, `batch_size`.

        Raises:
          CheckpointError: there is no model there, or the file says another sample rate.
        """
        return cls.of(saved_model.open_model(path, step=step), path, sample_rate=sample_rate, **options)

    @classmethod
    def of(
        cls, loaded: saved_model.LoadedModel, path: str | Path, *, sample_rate: int | None = None, **options: Any
    ) -> "Codec":
        """The codec of a model that was opened from `path`; see `load`."""
        if None not in (sample_rate, loaded.sample_rate) and sample_rate != loaded.sample_rate:
            raise CheckpointError(f"{path} is of {loaded.sample_rate} Hz, not sample_rate={sample_rate}")
        notes = list(loaded.notes)
        if sample_rate is None and loaded.sample_rate is None:
            notes.append(f"it does not say its sample rate; {_DEFAULT_RATE} Hz is assumed, sample_rate sets another")
        for note in notes:
            warnings.warn(f"{path}: {note}", UserWarning, stacklevel=3)
        rate = sample_rate or loaded.sample_rate or _DEFAULT_RATE
        return cls(loaded.model, loaded.variables, sample_rate=rate, **options)

    @staticmethod
    def fingerprint_of(model: AudioVAE, variables: dict) -> str:
        """Sixteen hex digits of a model's architecture and weights."""
        config = {name: getattr(model, name) for name in ("in_channels", "strides", "kernel_size", "dilations")}
        described = array_store.describe(jax.tree.map(np.asarray, dict(variables)))
        text = json.dumps([config, described], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def encode(
        self,
        audio: Any,
        sample_rate: int | None = None,
        *,
        key: jax.Array | None = None,
        mix: bool = False,
    ) -> Latents:
        """Audio to latents.

        Args:
          audio: `[T]`, `[T, C]` or `[B, T, C]` floats in -1..1, or the path of an audio file. Another
            rate than the model's is resampled. Mono is copied to every channel of the model; a mono
            model takes each channel by itself; other channel counts are refused.
          sample_rate: of an array, in Hz; None for the model's.
          key: to sample the latents; by default they are the posterior's mean.
          mix: mix other channel counts down or up to the model's; the result has the model's.

        Raises:
          DataError: audio that cannot be used; the message says why.
        """
        if isinstance(audio, (str, Path)):
            if sample_rate is not None:
                raise DataError(f"{printable(audio)} has its own sample rate; leave sample_rate out")
            source, shape = stream.open_file(audio), {}
        else:
            source, shape = arrays.as_stream(audio, self.sample_rate if sample_rate is None else sample_rate)
        return self._latents(source, shape, key=key, mix=mix)

    def _latents(self, source, shape, progress=None, *, key=None, mix=False):
        lanes, channels = self._lanes(source, shape.get("batch") or 1, mix)
        blocks = (posterior.z for posterior in self._encode(lanes, key))
        frames = stream.watched(blocks, self._chunked.frames_of(lanes.length), progress)
        return self.latents_of(frames, source, channels, **shape)

    def latents_of(
        self,
        blocks: Iterable[np.ndarray],
        source: AudioStream,
        channels: int,
        *,
        batch: int | None = None,
        flat: bool = False,
    ) -> Latents:
        """The latents that `encode` gives, of the blocks of `z` that `reconstruct_stream` has shown.

        Args:
          blocks: consecutive `[n, lanes, latent_dim]`, all of them.
          source: the audio.
          channels: of what they decode to.
          batch, flat: see `Latents`.
        """
        return Latents(
            z=np.moveaxis(np.concatenate(list(blocks)), 1, 0),
            model=self.fingerprint,
            hop_length=self.model.hop_length,
            model_sample_rate=self.sample_rate,
            sample_rate=source.sample_rate,
            length=source.length,
            channels=channels,
            batch=batch,
            flat=flat,
        )

    def frames_of(self, length: int, sample_rate: int) -> int:
        """The latent frames of `length` samples at `sample_rate` Hz."""
        return self._chunked.frames_of(stream.resampled_length(length, sample_rate, self.sample_rate))

    def decode(self, latents: Any, *, allow_other_model: bool = False) -> np.ndarray:
        """Latents to audio.

        Args:
          latents: from `encode`, or the path of their file; or an array `[frames, latent_dim]` or
            `[B, frames, latent_dim]`, whose audio has the model's rate and channels.
          allow_other_model: decode the latents of another model.

        Returns:
          float32, of the shape and rate of the audio that was encoded.

        Raises:
          CheckpointError: the latents are of another model.
          DataError: they do not fit this one.
        """
        if isinstance(latents, (str, Path)):
            latents = Latents.load(latents)
        if not isinstance(latents, Latents):
            return self._decode_array(arrays.as_floats(latents, "latents", "floats"))
        self.require(latents, "the latents", allow_other_model=allow_other_model)
        blocks = list(self._decode(latents))
        audio = np.concatenate(blocks)  # [T, lanes * channels]
        audio = np.moveaxis(audio.reshape(len(audio), latents.batch or 1, -1), 1, 0)
        if latents.batch is None:
            audio = audio[0]
        return audio[..., 0] if latents.flat else audio

    def reconstruct(self, audio: Any, sample_rate: int | None = None, **options: Any) -> np.ndarray:
        """`decode(encode(audio, sample_rate))`: float32, of the shape and rate that came in."""
        return self.decode(self.encode(audio, sample_rate, **options))

    def encode_file(
        self,
        source: str | Path,
        target: str | Path,
        progress: Callable[[float], None] | None = None,
        *,
        storage_dtype: str = "float32",
        **options,
    ):
        """Encode an audio file to a `.safetensors` file of latents.

        Args:
          source, target: paths.
          progress: called with the share that is done.
          storage_dtype: of the file, see `Latents.save`.
          **options: `key` and `mix`, see `encode`.

        Raises:
          DataError: the audio cannot be used, or the file not written.
        """
        file = stream.open_file(source)
        self._latents(file, {}, progress, **options).save(target, storage_dtype)

    def decode_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        allow_other_model: bool = False,
        progress: Callable[[float], None] | None = None,
    ):
        """Decode a file of latents to an audio file, in memory that does not grow with it.

        Raises:
          CheckpointError: the latents are of another model.
          DataError: they cannot be read or do not fit, or the file cannot be written.
        """
        latents = Latents.load(source)
        self.require(latents, printable(source), allow_other_model=allow_other_model)
        if latents.batch not in (None, 1):
            raise DataError(f"{printable(source)} holds a batch of {latents.batch}; one audio file holds one")
        blocks = stream.watched(self._decode(latents), latents.length, progress)
        stream.write_file(Path(target), blocks, latents.sample_rate, latents.channels, latents.length)

    def reconstruct_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        key: jax.Array | None = None,
        mix: bool = False,
        progress: Callable[[float], None] | None = None,
    ):
        """Encode and decode an audio file into another, in memory that does not grow with it.

        Raises:
          DataError: the audio cannot be used, or the file not written.
        """
        made = self.reconstruct_stream(stream.open_file(source), key=key, mix=mix)
        stream.write(made, Path(target), progress)

    def reconstruct_stream(
        self,
        source: AudioStream,
        *,
        key: jax.Array | None = None,
        mix: bool = False,
        watch: Callable[[Posterior], None] = lambda posterior: None,
    ) -> AudioStream:
        """Audio of any length through the model, computed as its blocks are asked for.

        Args:
          source: the audio.
          key, mix: see `encode`.
          watch: is shown the posteriors, in blocks, each `(z, mean, logvar)` of `[n, lanes, latent_dim]`.

        Raises:
          DataError: audio that cannot be used; at once, or as the blocks are asked for.
        """
        lanes, channels = self._lanes(source, 1, mix)
        frames = self._chunked.frames_of(lanes.length)

        def latents():
            for posterior in self._encode(lanes, key):
                watch(posterior)
                yield posterior.z

        def blocks():
            return self._audio(latents(), frames, lanes.length, source.sample_rate, source.length, channels)

        return dataclasses.replace(source, channels=channels, blocks=blocks)

    def stream(self, source: AudioStream, *, key: jax.Array | None = None, mix: bool = False) -> LatentStream:
        """The latents of audio of any length, those of `encode`, in memory that does not grow with it.

        Args:
          source: the audio.
          key, mix: see `encode`.

        Raises:
          DataError: audio that cannot be used; at once, or as the latents are asked for.
        """
        lanes, channels = self._lanes(source, 1, mix)
        frames, count = self._chunked.frames_of(lanes.length), lanes.channels // self.model.in_channels
        return LatentStream(self._encode(lanes, key), frames, count, channels)

    def posteriors(self, path: str | Path, mix: bool = True) -> Iterator[np.ndarray]:
        """The uncalibrated means of a file's latents, in blocks `[n, lanes, latent_dim]`."""
        for posterior in self.stream(stream.open_file(path), mix=mix).posteriors:
            yield posterior.mean

    def _lanes(self, source: AudioStream, batch: int, mix: bool) -> tuple[AudioStream, int]:
        """The audio at the model's rate with `lanes * in_channels` channels, and how many channels come back."""
        wanted, have = self.model.in_channels, source.channels // batch
        channels = have
        if have not in (1, wanted) and wanted != 1:
            if not mix:
                raise DataError(
                    f"{source.name} has {have} channels and the model takes {wanted}; mix it down first, "
                    "or ask for it (mix=True, --mix)"
                )
            source = source.map(lambda block: _adapted(block, have, wanted), batch * wanted)
            channels = wanted
        source = source.resampled(self.sample_rate)
        if have == 1 and wanted > 1:
            source = source.map(lambda block: np.repeat(block, wanted, axis=1), source.channels * wanted)
        return source, channels

    def _encode(self, lanes: AudioStream, key):
        width = self.model.in_channels
        blocks = (block.reshape(len(block), -1, width) for block in lanes.blocks())
        return self._chunked.encode(blocks, lanes.length, key)

    def _decode(self, latents):
        length = stream.resampled_length(latents.length, latents.sample_rate, self.sample_rate)
        z = np.moveaxis(latents.z, 0, 1)
        channels = latents.channels * (latents.batch or 1)
        return self._audio([z], len(z), length, latents.sample_rate, latents.length, channels)

    def _audio(self, z, frames, model_length, sample_rate, length, channels):
        """Blocks `[n, channels]` at `sample_rate`, `length` samples in all, from blocks of latents."""
        blocks = self._chunked.decode(z, frames, model_length)
        blocks = (self._unlaned(block, channels) for block in blocks)
        if sample_rate != self.sample_rate:
            blocks = stream.resample_blocks(blocks, self.sample_rate, sample_rate, channels, length)
        return blocks

    def _unlaned(self, block, channels):
        """`[n, lanes, in_channels]` to `[n, channels]`: what was copied to several channels is their mean."""
        n, lanes, width = block.shape
        if lanes * width == channels:
            return block.reshape(n, channels)
        return block.mean(axis=2).reshape(n, channels)

    def _decode_array(self, z):
        if z.ndim in (2, 3) and z.shape[-2] == self.model.latent_dim != z.shape[-1]:
            raise DataError(
                f"latents of shape {list(z.shape)} are as PyTorch has them; transpose them to [..., frames, "
                f"{self.model.latent_dim}], as latents.swapaxes(-2, -1) does"
            )
        if z.ndim not in (2, 3) or z.shape[-1] != self.model.latent_dim or 0 in z.shape:
            raise DataError(f"latents must be [frames, {self.model.latent_dim}] or with a batch before, not {z.shape}")
        arrays.require_finite(z, "the latents")
        lanes = z[None] if z.ndim == 2 else z
        audio = np.concatenate(list(self._chunked.decode([np.moveaxis(lanes, 0, 1)], lanes.shape[1])))
        audio = np.moveaxis(audio, 1, 0)
        return audio[0] if z.ndim == 2 else audio

    def require(self, latents: Latents, what: str, *, allow_other_model: bool = False):
        """Raise unless latents are of this model, and such that it decodes them.

        Args:
          latents: to be looked at.
          what: they are, for the error.
          allow_other_model: that they fit is enough.

        Raises:
          CheckpointError: they are of another model.
          DataError: they do not fit this one.
        """
        if not allow_other_model:
            require_model(latents, self.fingerprint, what)
        arrays.require_finite(latents.z, what)
        lanes, frames, width = latents.z.shape
        length = stream.resampled_length(latents.length, latents.sample_rate, self.sample_rate)
        wanted = (latents.batch or 1) * (latents.channels if self.model.in_channels == 1 else 1)
        if width != self.model.latent_dim or latents.hop_length != self.model.hop_length or lanes != wanted:
            raise DataError(
                f"{what} are [{lanes}, frames, {width}] of hop {latents.hop_length}, which does not fit this model "
                f"({wanted}, {self.model.latent_dim}, hop {self.model.hop_length})"
            )
        if self.model.in_channels > 1 and latents.channels not in (1, self.model.in_channels):
            raise DataError(
                f"{what} are of {latents.channels} channels, which this model of {self.model.in_channels} does not give"
            )
        if frames != self._chunked.frames_of(length):
            raise DataError(
                f"{what} have {frames} frames; {latents.length} samples take {self._chunked.frames_of(length)}"
            )


def _adapted(block, have, wanted):
    items = audio_file.adapt_channels(block.reshape(-1, have), wanted)
    return items.reshape(len(block), -1)
