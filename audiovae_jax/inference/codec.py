"""`Codec`: encodes audio to latents and decodes them, for any length and rate."""

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from audiovae_jax.data.audio import audio_file, stream
from audiovae_jax.data.audio import channels as layouts
from audiovae_jax.data.audio.levels import Level
from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.errors import CheckpointError, DataError, printable, whole_number
from audiovae_jax.inference import arrays
from audiovae_jax.inference.chunked import ChunkedModel
from audiovae_jax.inference.latents import Latents, require_model
from audiovae_jax.inference.live import StreamDecoder, StreamEncoder
from audiovae_jax.models.audio_vae import AudioVAE, Posterior, kind_of
from audiovae_jax.persistence import saved_model
from audiovae_jax.storage import array_store

_DEFAULT_RATE = 44100


@dataclasses.dataclass(frozen=True)
class LatentStream:
    """Latents that are computed lazily, block by block.

    Attributes:
      posteriors: consecutive `(z, mean, logvar)`, each `[n, lanes, latent_dim]`; `z` is calibrated.
      frames: total number of frames.
      lanes: one, or one per channel for a mono model.
      channels: channels of the decoded audio.
    """

    posteriors: Iterator[Posterior]
    frames: int
    lanes: int
    channels: int


class Codec:
    """A model for inference, with folded weight norm and exact chunked computation.

    Args:
      model, variables: the results of `load_model`.
      sample_rate: sample rate of the model's audio in Hz.
      dtype: dtype of the convolutions; by default the model's.
      chunk_length: samples per window of inference. The result does not depend on it.
      batch_size: windows computed at once; by default one per device on CPU and eight elsewhere.

    Raises:
      DataError: a number is out of range.

    Attributes:
      model, variables: the folded module and its variables.
      sample_rate: in Hz.
      fingerprint: sixteen hex digits that identify weights and architecture.
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
        """Return the settings that affect rounding; see `ChunkedModel.windows`."""
        return self._chunked.windows

    @classmethod
    def load(
        cls, path: str | Path, *, step: int | None = None, sample_rate: int | None = None, **options: Any
    ) -> "Codec":
        """Create a codec from any path that `load_model` accepts.

        Args:
          path, step: see `load_model`.
          sample_rate: in Hz, for files without a sample rate. If neither is given, 44,100 is assumed with a warning.
          **options: `dtype`, `chunk_length`, `batch_size`.

        Raises:
          CheckpointError: there is no model at `path`, or its sample rate differs.
        """
        return cls.of(saved_model.open_model(path, step=step), path, sample_rate=sample_rate, **options)

    @classmethod
    def of(
        cls, loaded: saved_model.LoadedModel, path: str | Path, *, sample_rate: int | None = None, **options: Any
    ) -> "Codec":
        """Create a codec from a model that was opened from `path`; see `load`."""
        if None not in (sample_rate, loaded.sample_rate) and sample_rate != loaded.sample_rate:
            raise CheckpointError(
                f": its sample rate is {loaded.sample_rate} Hz, not sample_rate={sample_rate}", path=path
            )
        notes = list(loaded.notes)
        if sample_rate is None and loaded.sample_rate is None:
            notes.append(f"it contains no sample rate; {_DEFAULT_RATE} Hz is assumed, sample_rate sets another")
        for note in notes:
            warnings.warn(f"{path}: {note}", UserWarning, stacklevel=3)
        rate = sample_rate or loaded.sample_rate or _DEFAULT_RATE
        return cls(loaded.model, loaded.variables, sample_rate=rate, **options)

    @staticmethod
    def fingerprint_of(model: AudioVAE, variables: dict) -> str:
        """Return sixteen hex digits that identify a model's architecture and weights."""
        config = {name: getattr(model, name) for name in ("in_channels", "strides", "kernel_size", "dilations")}
        config |= kind_of(model)
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
        """Encode audio to latents.

        Audio at another sample rate is resampled. Mono audio is copied to every channel of the model. A mono model
        encodes each channel separately. Other channel counts need `mix`.

        Args:
          audio: `[T]`, `[T, C]` or `[B, T, C]` floats in -1..1, or the path of an audio file.
          sample_rate: sample rate of an array in Hz; None for the model's.
          key: key to sample the latents; by default they are the posterior's mean.
          mix: mix other channel counts down or up to the model's. The decoded audio then has the model's channels.

        Raises:
          DataError: the audio cannot be used, with the reason.
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
        """Return the result of `encode` from its blocks of `z`.

        `reconstruct_stream` passes these blocks to `watch`.

        Args:
          blocks: consecutive blocks of `z`, each `[n, lanes, latent_dim]`, for the whole signal.
          source: the audio.
          channels: channels of the decoded audio.
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
        """Return the number of latent frames of `length` samples at `sample_rate` Hz."""
        return self._chunked.frames_of(stream.resampled_length(length, sample_rate, self.sample_rate))

    def decode(self, latents: Any, *, allow_other_model: bool = False) -> np.ndarray:
        """Decode latents to audio.

        Args:
          latents: the result of `encode` or the path of its file; or an array `[frames, latent_dim]` or
            `[B, frames, latent_dim]`. Arrays decode to the model's rate and channels.
          allow_other_model: also decode latents of another model.

        Returns:
          float32 audio, with the shape and rate of the encoded audio.

        Raises:
          CheckpointError: the latents are of another model.
          DataError: the latents do not fit this model.
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
        """Return `decode(encode(audio, sample_rate))`: float32, shaped like the input."""
        return self.decode(self.encode(audio, sample_rate, **options))

    def stream_encoder(self, *, block_frames: int = 1) -> StreamEncoder:
        """Encode live audio at the model's sample rate, in blocks of any size.

        The latents together equal those of `encode` up to rounding. Layers keep the inputs that they need again, so
        no sample is computed twice.

        Args:
          block_frames: latent frames of one step. More are faster, and add their length to the latency.

        Returns:
          A stream with `push(audio) -> z`, `flush() -> z` and `latency` in samples; `audio: [n, in_channels]` and
          `z: [m, latent_dim]`. For a mono model, use a stream per channel.
        """
        return StreamEncoder(self.model, self.variables, self._chunked.frames_of, block_frames)

    def stream_decoder(self, *, block_frames: int = 1) -> StreamDecoder:
        """Decode live latents, in blocks of any size. See `stream_encoder`.

        The audio together equals that of `decode` for an array of all latents, up to rounding.

        Returns:
          A stream with `push(z) -> audio`, `flush() -> audio` and `latency` in samples.
        """
        return StreamDecoder(self.model, self.variables, block_frames)

    def encode_file(
        self,
        source: str | Path,
        target: str | Path,
        progress: Callable[[float], None] | None = None,
        *,
        storage_dtype: str = "float32",
        allow_truncated: bool = False,
        **options,
    ):
        """Encode an audio file to a `.safetensors` file of latents.

        Args:
          source, target: paths.
          progress: called with the fraction that is done.
          storage_dtype: dtype of the file, see `Latents.save`.
          allow_truncated: encode a damaged file up to its damage, with a warning.
          **options: `key` and `mix`, see `encode`.

        Raises:
          DataError: the audio cannot be used, or the file cannot be written.
        """
        file = stream.open_file(source, allow_truncated)
        self._latents(file, {}, progress, **options).save(target, storage_dtype)

    def decode_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        allow_other_model: bool = False,
        progress: Callable[[float], None] | None = None,
        peak: str | None = None,
    ) -> Level:
        """Decode a file of latents to an audio file; the audio is streamed to disk.

        Args:
          source, target: paths.
          allow_other_model: see `decode`.
          progress: called with the fraction that is done.
          peak: what to do with samples above full scale, see `stream.write_file`.

        Returns:
          The level of the decoded audio.

        Raises:
          CheckpointError: the latents are of another model.
          DataError: the latents cannot be read or do not fit the model, or the file cannot be written.
        """
        latents = Latents.load(source)
        self.require(latents, printable(source), allow_other_model=allow_other_model)
        if latents.batch not in (None, 1):
            raise DataError(f"{printable(source)} contains a batch of {latents.batch}, but must contain one item")
        blocks = stream.watched(self._decode(latents), latents.length, progress)
        return stream.write_file(Path(target), blocks, latents.sample_rate, latents.channels, latents.length, peak=peak)

    def reconstruct_file(
        self,
        source: str | Path,
        target: str | Path,
        *,
        key: jax.Array | None = None,
        mix: bool = False,
        progress: Callable[[float], None] | None = None,
        peak: str | None = None,
        allow_truncated: bool = False,
    ) -> Level:
        """Encode and decode an audio file to another, in bounded memory.

        Args:
          source, target: paths.
          key, mix: see `encode`.
          progress: called with the fraction that is done.
          peak: what to do with samples above full scale, see `stream.write_file`.
          allow_truncated: reconstruct a damaged file up to its damage, with a warning.

        Returns:
          The level of the decoded audio.

        Raises:
          DataError: the audio cannot be used, or the file cannot be written.
        """
        made = self.reconstruct_stream(stream.open_file(source, allow_truncated), key=key, mix=mix)
        return stream.write(made, Path(target), progress, peak=peak)

    def reconstruct_stream(
        self,
        source: AudioStream,
        *,
        key: jax.Array | None = None,
        mix: bool = False,
        watch: Callable[[Posterior], None] = lambda posterior: None,
    ) -> AudioStream:
        """Encode and decode audio of any length, lazily, block by block.

        Args:
          source: the audio.
          key, mix: see `encode`.
          watch: called with each block of the posterior, `(z, mean, logvar)` of `[n, lanes, latent_dim]` each.

        Raises:
          DataError: the audio cannot be used. Raised by this call, or while iterating over the blocks.
        """
        lanes, channels = self._lanes(source, 1, mix)
        frames = self._chunked.frames_of(lanes.length)

        def latents():
            for posterior in self._encode(lanes, key):
                watch(posterior)
                yield posterior.z

        def blocks():
            return self._audio(latents(), frames, lanes.length, source.sample_rate, source.length, channels)

        speakers = source.speakers if channels == source.channels else None
        return dataclasses.replace(source, channels=channels, speakers=speakers, blocks=blocks)

    def stream(self, source: AudioStream, *, key: jax.Array | None = None, mix: bool = False) -> LatentStream:
        """Encode audio of any length as `encode` does, in bounded memory.

        Args:
          source: the audio.
          key, mix: see `encode`.

        Raises:
          DataError: the audio cannot be used. Raised by this call, or while iterating over the posteriors.
        """
        lanes, channels = self._lanes(source, 1, mix)
        frames, count = self._chunked.frames_of(lanes.length), lanes.channels // self.model.in_channels
        return LatentStream(self._encode(lanes, key), frames, count, channels)

    def _lanes(self, source: AudioStream, batch: int, mix: bool) -> tuple[AudioStream, int]:
        """Convert audio to the model's rate and channels.

        Returns:
          `(audio, channels)`: a stream with `lanes * in_channels` channels, and the channels of the decoded audio.
        """
        wanted, have = self.model.in_channels, source.channels // batch
        channels = have
        if have not in (1, wanted) and wanted != 1:
            if not mix:
                raise DataError(
                    f"{source.name} has {have} channels, but the model needs {wanted}; convert it first, "
                    "or mix its channels (mix=True, --mix)"
                )
            if source.speakers is None and have > 2:
                warnings.warn(f"{source.name} has {layouts.assumed(have)}", UserWarning, stacklevel=2)
            speakers = source.speakers
            source = source.map(lambda block: _adapted(block, have, wanted, speakers), batch * wanted)
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
        """Decode blocks of latents to blocks `[n, channels]`, `length` samples in total."""
        blocks = self._chunked.decode(z, frames, model_length)
        blocks = (self._unlaned(block, channels) for block in blocks)
        if sample_rate != self.sample_rate:
            blocks = stream.resample_blocks(blocks, self.sample_rate, sample_rate, channels, length)
        return blocks

    def _unlaned(self, block, channels):
        """Reshape `[n, lanes, in_channels]` to `[n, channels]`, averaging copies of mono."""
        n, lanes, width = block.shape
        if lanes * width == channels:
            return block.reshape(n, channels)
        return block.mean(axis=2).reshape(n, channels)

    def _decode_array(self, z):
        if z.ndim in (2, 3) and z.shape[-2] == self.model.latent_dim != z.shape[-1]:
            raise DataError(
                f"latents of shape {list(z.shape)} are in PyTorch's order; transpose them to [..., frames, "
                f"{self.model.latent_dim}] with latents.swapaxes(-2, -1)"
            )
        if z.ndim not in (2, 3) or z.shape[-1] != self.model.latent_dim or 0 in z.shape:
            width = self.model.latent_dim
            raise DataError(f"latents must be [frames, {width}] or [B, frames, {width}], not {z.shape}")
        arrays.require_finite(z, "the latents")
        lanes = z[None] if z.ndim == 2 else z
        audio = np.concatenate(list(self._chunked.decode([np.moveaxis(lanes, 0, 1)], lanes.shape[1])))
        audio = np.moveaxis(audio, 1, 0)
        return audio[0] if z.ndim == 2 else audio

    def require(self, latents: Latents, what: str, *, allow_other_model: bool = False):
        """Raise unless this model can decode the latents.

        Args:
          latents: the latents to check.
          what: name of the latents, for the error.
          allow_other_model: also accept latents of another model, if their shape fits.

        Raises:
          CheckpointError: the latents are of another model.
          DataError: the latents do not fit this model.
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
                f"{what} have {latents.channels} channels, but this model decodes to {self.model.in_channels}"
            )
        if frames != self._chunked.frames_of(length):
            raise DataError(
                f"{what} have {frames} frames, but {latents.length} samples need {self._chunked.frames_of(length)}"
            )


def _adapted(block, have, wanted, speakers):
    items = audio_file.adapt_channels(block.reshape(-1, have), wanted, speakers)
    return items.reshape(len(block), -1)
