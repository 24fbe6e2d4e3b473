"""`LatentDataset`: reads tracks and random crops from shards of latents.

A crop depends only on (seed, index), so a run's data has no state. Row `row` of step `step` is crop
`step * batch_size + row`, for any number of hosts or threads.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiovae_jax.data.audio import remote
from audiovae_jax.data.audio.remote import RemoteFile
from audiovae_jax.data.feeding import pipeline
from audiovae_jax.data.sets import shards
from audiovae_jax.data.sets.shards import Shard
from audiovae_jax.errors import DataError, printable
from audiovae_jax.inference import chunked, latent_records, latent_writer
from audiovae_jax.inference.latents import Latents

SIDES = ("train", "validation")


@dataclasses.dataclass(frozen=True)
class LatentTrack:
    """A track's latents in consecutive records of a shard.

    Attributes:
      key: name of the track in the encoded data set.
      sides: "train", "validation" or both.
      frames: number of latent frames.
      lanes: one, or one per channel for a mono model.
      sample_rate: sample rate of the audio in Hz.
      length: length of the audio, in samples at `sample_rate`.
      channels: channels of the decoded audio.
      weight: how often a second of this track is drawn, relative to one of weight 1.
      shard: index of the track's shard.
      first_record: index of the track's first record in the shard.
    """

    key: str
    sides: tuple[str, ...]
    frames: int
    lanes: int
    sample_rate: int
    length: int
    channels: int
    weight: float
    shard: int
    first_record: int


class LatentDataset:
    """A data set written by `encode_dataset`.

    All latents are in calibrated units, as in `Codec.encode` and `Codec.decode`.

    Args:
      root: the folder, or its URL.
      access: settings for reading a URL.

    Raises:
      DataError: the data set is incomplete, or has another format.

    Attributes:
      tracks: all tracks.
      settings: entries of the index, among them `model`, `hop_length`, `latent_dim`, `sample_rate` in Hz, `what`,
        `storage_dtype`, `latent_mean` and `latent_std`. `z * (latent_std + 1e-8) + latent_mean` is uncalibrated.
    """

    def __init__(self, root: str | Path, access: remote.Access | None = None):
        root, access = str(root), access or remote.Access()
        self._name = printable(root)
        is_url = remote.is_url(root)
        base = root.rstrip("/") if is_url else Path(remote.local_path(root))
        content = _read_index(base, self._name, access)
        try:
            self.settings: dict[str, Any] = {
                key: value for key, value in content.items() if key not in ("tracks", "shards")
            }
            self.tracks = tuple(LatentTrack(**{**track, "sides": tuple(track["sides"])}) for track in content["tracks"])
            self._by_key = {track.key: track for track in self.tracks}
            self._shards = []
            for name, size in content["shards"]:
                place = f"{base}/{name}{shards.SUFFIX}"
                place = RemoteFile(place, size, access) if is_url else Path(place)
                self._shards.append(Shard(place, f"{base}/{name}.json" if is_url else base / f"{name}.json"))
                if not is_url and (not place.is_file() or place.stat().st_size != size):
                    raise DataError(f"{printable(place)} is missing, or its size is not {size} bytes; encode it again")
            self._model, self._what = content["model"], content["what"]
            self._record_frames, self._arrays = content["record_frames"], latent_records.ARRAYS[self._what]
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{self._name}: its {shards.INDEX} is damaged ({error!r}); encode it again") from error

    def __len__(self) -> int:
        return len(self.tracks)

    def side(self, name: str) -> tuple[LatentTrack, ...]:
        """Return the tracks of "train" or "validation"."""
        if name not in SIDES:
            raise DataError(f"side={name!r} must be one of {', '.join(SIDES)}")
        return tuple(track for track in self.tracks if name in track.sides)

    def read(
        self,
        track: LatentTrack | str,
        first_frame: int = 0,
        frames: int | None = None,
        *,
        rng: np.random.Generator | None = None,
    ) -> np.ndarray:
        """Read a range of a track's latents.

        Args:
          track: one of `tracks`, or its key.
          first_frame: first frame of the range.
          frames: number of frames; None for all up to the end.
          rng: generator to sample the posterior with; None returns the mean. Stored samples are returned unchanged.

        Returns:
          float32 `[lanes, frames, latent_dim]`.

        Raises:
          DataError: there is no such track or range, or a record is damaged.
        """
        arrays = self._read(track, first_frame, frames)
        if self._what == "samples":
            return arrays["z"]
        mean, logvar = arrays["mean"], arrays["logvar"]
        return mean if rng is None else mean + rng.standard_normal(mean.shape, np.float32) * np.exp(logvar / 2)

    def posterior(
        self, track: LatentTrack | str, first_frame: int = 0, frames: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Read `(mean, logvar)` of a range of a track, each as `read` returns it.

        Raises:
          DataError: the data set contains samples, or `read` would raise.
        """
        if self._what == "samples":
            raise DataError(f"{self._name} contains samples, but no posterior; encode it with --what=posterior")
        arrays = self._read(track, first_frame, frames)
        return arrays["mean"], arrays["logvar"]

    def latents(self, track: LatentTrack | str, *, key: jax.Array | None = None) -> Latents:
        """Read a whole track as the `Latents` of `Codec.encode(audio, key=key)`.

        With float32 storage, the codec's mean (without a key) or stored sample is returned exactly. A posterior that
        is sampled with a key uses the codec's noise. The sample equals the codec's up to float32 rounding.

        Raises:
          DataError: there is no such track, a record is damaged, or a key was given for stored samples.
        """
        track = self._track(track)
        if key is not None:
            mean, logvar = self.posterior(track)
            lanes, frames = jnp.arange(track.lanes), jnp.arange(track.frames)
            frames = jnp.broadcast_to(frames, (track.lanes, track.frames))
            z = mean + np.asarray(chunked.noise(key, lanes, frames, mean.shape[-1])) * np.exp(logvar / 2)
        else:
            z = self.read(track)
        return Latents(
            z=z,
            model=self._model,
            hop_length=self.settings["hop_length"],
            model_sample_rate=self.settings["sample_rate"],
            sample_rate=track.sample_rate,
            length=track.length,
            channels=track.channels,
        )

    def crops(
        self, frames: int, *, seed: int = 0, side: str = "train", sample: bool = True, cover_ends: bool = False
    ) -> "LatentCrops":
        """Return random crops of one side's tracks, by index; see `batches`."""
        return LatentCrops(self, self.side(side), frames, seed, sample and self._what == "posterior", cover_ends)

    def batches(
        self,
        batch_size: int,
        frames: int,
        *,
        num_steps: int,
        seed: int = 0,
        start_step: int = 0,
        side: str = "train",
        sample: bool = True,
        cover_ends: bool = False,
        num_threads: int = 4,
        prefetch_batches: int = 4,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[np.ndarray]:
        """Iterate over this host's part of each batch, read ahead by threads.

        Args:
          batch_size: crops per batch, over all hosts.
          frames: frames of a crop. Shorter tracks are left out.
          num_steps: step at which to stop.
          seed: seed of the crops and of posterior samples.
          start_step: step at which to start. The batch of a step does not depend on it.
          side: "train" or "validation".
          sample: sample the posterior for each crop; otherwise its mean is used. Stored samples are unchanged.
          cover_ends: draw a track's first and last frames as often as those in its middle, see `LatentCrops`.
          num_threads: number of reading threads.
          prefetch_batches: maximum number of batches to read ahead.
          process_index, process_count: index of this host, and number of hosts.

        Yields:
          float32 `[batch_size / process_count, frames, latent_dim]`.

        Raises:
          DataError: no track is long enough, the batch cannot be split over the hosts, or a record is damaged.
        """
        if batch_size < 1 or batch_size % process_count:
            raise DataError(f"batch_size={batch_size} must be a positive multiple of the {process_count} hosts")
        return pipeline.batches(
            self.crops(frames, seed=seed, side=side, sample=sample, cover_ends=cover_ends),
            batch_size=batch_size,
            start_step=start_step,
            num_steps=num_steps,
            num_threads=num_threads,
            prefetch_batches=prefetch_batches,
            process_index=process_index,
            process_count=process_count,
        )

    def _track(self, track):
        if isinstance(track, LatentTrack):
            return track
        if track not in self._by_key:
            raise DataError(f"{self._name} has no track {printable(track)!r}")
        return self._by_key[track]

    def _read(self, track, first_frame, frames):
        """Read the stored arrays of a range, by name."""
        track = self._track(track)
        frames = track.frames - first_frame if frames is None else frames
        if first_frame < 0 or frames < 1 or first_frame + frames > track.frames:
            raise DataError(
                f"{printable(track.key)} has {track.frames} frames, too few for {frames} from frame {first_frame} on"
            )
        each = self._record_frames
        first, last = first_frame // each, (first_frame + frames - 1) // each
        shape = (track.lanes, self.settings["latent_dim"])
        parts = {name: [] for name in self._arrays}
        try:
            contents = self._shards[track.shard].read(track.first_record + first, last - first + 1)
            for i, content in enumerate(contents, start=first):
                arrays = latent_records.decode(content, model=self._model, key=track.key, first_frame=i * each)
                held = min(each, track.frames - i * each)
                low, high = max(0, first_frame - i * each), first_frame + frames - i * each
                for name, pieces in parts.items():
                    array = arrays.get(name)
                    if array is None or array.shape != (shape[0], held, shape[1]):
                        raise DataError("its records do not match the index; encode it again")
                    pieces.append(array[:, low:high])
        except remote.UnreachableError:
            raise
        except DataError as error:
            raise DataError(f"{printable(track.key)}: {error}") from error
        except OSError as error:
            raise DataError(f"{printable(track.key)}: {error.strerror or error}") from error
        return {name: np.concatenate(pieces, axis=1) for name, pieces in parts.items()}


class LatentCrops:
    """Random crops of tracks, by index.

    A track is drawn in proportion to its frames times its weight. Then the first frame of the crop is drawn.

    By default, all crops of a track are equally likely. Its first and last frames are then in one crop each, and a
    frame in the middle is in `frames` crops.

    With `cover_ends`, positions that overlap either end of the track are drawn too, with the same probability. These
    crops are moved inside the track. The first and last frames are then as likely as those in the middle. Frames less
    than a crop from an end are up to twice as likely, in tracks shorter than two crops up to three times.

    Args:
      dataset: the data set to read from.
      tracks: tracks of the data set to draw from. Tracks shorter than a crop are left out.
      frames: frames of a crop.
      seed: seed of the random crops.
      sample: sample the posterior instead of using its mean.
      cover_ends: draw the first and last frames of a track as often as those in its middle.

    Raises:
      DataError: no track is long enough.
    """

    def __init__(
        self,
        dataset: LatentDataset,
        tracks: Sequence[LatentTrack],
        frames: int,
        seed: int,
        sample: bool = False,
        cover_ends: bool = False,
    ):
        self.tracks = [track for track in tracks if track.frames >= frames > 0 and track.weight > 0]
        if not self.tracks:
            longest = max((track.frames for track in tracks), default=0)
            raise DataError(f"no track has {frames} frames: the longest of {len(tracks)} tracks has {longest}")
        self._dataset, self._frames, self._seed, self._sample = dataset, frames, seed, sample
        self._overlap = frames - 1 if cover_ends else 0  # frames of a crop that may lie outside the track
        self._ends = np.cumsum([track.frames * track.weight for track in self.tracks])

    def where(self, index: int) -> tuple[LatentTrack, int, int]:
        """Return `(track, first frame, lane)` of a crop, for example to condition on it."""
        return self._where(_generator(self._seed, index))

    def __getitem__(self, index: int) -> np.ndarray:
        """Return a crop, float32 `[frames, latent_dim]`."""
        rng = _generator(self._seed, index)
        track, first, lane = self._where(rng)
        return self._dataset.read(track, first, self._frames, rng=rng if self._sample else None)[lane]

    def _where(self, rng):
        chosen = int(np.searchsorted(self._ends, rng.random() * self._ends[-1], side="right"))
        track = self.tracks[min(chosen, len(self.tracks) - 1)]
        last = track.frames - self._frames
        first = int(rng.integers(-self._overlap, last + self._overlap + 1))
        return track, min(max(first, 0), last), int(rng.integers(track.lanes))


def _read_index(base, name, access):
    try:
        place = f"{base}/{shards.INDEX}" if isinstance(base, str) else base / shards.INDEX
        text = remote.read_bytes(place, access) if isinstance(base, str) else place.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{name} contains no {shards.INDEX}; encode_dataset writes it after all shards") from None
    except OSError as error:
        raise DataError(f"{name}: {error.strerror or error}") from error
    try:
        content = json.loads(text)
        if content["format"] != latent_writer.FORMAT:
            raise DataError(f"{name} contains no latents: the format of its {shards.INDEX} is {content['format']}")
        if content["version"] > latent_writer.VERSION:
            raise DataError(f"{name}: its {shards.INDEX} was written by a newer version of this program")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: its {shards.INDEX} is damaged ({error!r}); encode it again") from error
    return content


def _generator(seed, index):
    return np.random.Generator(np.random.Philox(key=[seed, index]))
