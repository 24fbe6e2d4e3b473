"""The model on signals of any length in bounded memory, with the result of one pass.

A signal is cut into windows of one fixed shape, so that nothing compiles per file: a core whose
result is kept, and on both sides as much context as the model sees. Beyond the signal's ends the layers are
kept at zero (see `span`), as one pass pads them, so that edges are exact too. A signal that one window holds needs
no context, and takes the smallest of a few windows.
"""

import collections
import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiovae_jax.distributed import mesh
from audiovae_jax.errors import DataError, whole_number
from audiovae_jax.models.audio_vae import AudioVAE, Posterior
from audiovae_jax.models.receptive_field import Context, decoder_context, encoder_context
from audiovae_jax.models.span import Span

# Elements of one layer's activations in a batch of windows: 32 MB in float32, and some ten of them live at once.
_ACTIVATION_BUDGET = 1 << 23
_LEAST_FRAMES = 16  # of the windows for short signals, each of half the next one's
_IN_FLIGHT = 2  # batches
_MAX_POSITION = 2**31 - 2**24  # samples


class ChunkedModel:
    """Encodes and decodes streams of blocks, `lanes` signals of one length side by side.

    Args:
      model, variables: the model.
      chunk_length: samples whose result one window gives, rounded up to whole latent frames; by
        default what fits the memory budget.
      batch_size: windows computed at once, rounded up to a multiple of the devices; by default one
        per device on a CPU, and eight elsewhere.

    Raises:
      DataError: a chunk length or batch size that is no positive whole number; a signal that is too long.
    """

    def __init__(
        self, model: AudioVAE, variables: dict, *, chunk_length: int | None = None, batch_size: int | None = None
    ):
        self.model = model
        self._devices = mesh.make_mesh(jax.local_devices())
        self._variables = jax.device_put(variables, mesh.replicated(self._devices))
        count = self._devices.size
        if batch_size is not None:
            batch_size = whole_number(batch_size, "batch_size", DataError)
        else:
            batch_size = count * (1 if self._devices.devices.flat[0].platform == "cpu" else 8)
        self._batch_size = -(-batch_size // count) * count
        self._contexts = {"encode": encoder_context(model), "decode": decoder_context(model)}
        if chunk_length is not None:
            chunk_length = whole_number(chunk_length, "chunk_length", DataError)
            self._sizes = (-(-chunk_length // model.hop_length),)
            return
        rows = self._batch_size // count
        samples = _ACTIVATION_BUDGET / (model.base_channels * rows)
        # Context is computed for nothing; a core of several times as much keeps that small.
        least = 4 * max(sum(context) for context in self._contexts.values())
        largest = max(least, 1 << int(math.log2(max(1, samples / model.hop_length))))
        halvings = max(0, int(math.log2(largest / _LEAST_FRAMES)))
        self._sizes = tuple(-(-largest // 2**i) for i in reversed(range(halvings + 1)))

    @property
    def windows(self) -> dict[str, Any]:
        """What rounding depends on: the frames that a window may give, and the windows that a device has at once."""
        return {"window_frames": list(self._sizes), "windows_at_once": self._batch_size // self._devices.size}

    def encode(self, blocks: Iterable[np.ndarray], length: int, key: jax.Array | None = None) -> Iterator[Posterior]:
        """The posterior of a signal, in blocks of consecutive frames.

        Args:
          blocks: consecutive `[n, lanes, in_channels]`, `length` samples in all.
          length: of the signal. It is zero-padded at its end to what `frames_of(length)` frames stand for.
          key: to sample `z`; None takes the mean. The noise is a function of the key, the lane and the
            frame, whatever the windows are.

        Yields:
          `(z, mean, logvar)`, each `[n, lanes, latent_dim]`, `frames_of(length)` frames in all.
        """
        frames = self.frames_of(length)
        padded = self.model.decoded_length(frames)
        core, context = self._window("encode", frames)
        step = functools.partial(_encode, model=self.model, core=core, context=context, sample=key is not None)
        key = jax.random.key(0) if key is None else key
        results = self._run(step, blocks, frames, padded, self.model.hop_length, core, frames, key)
        yield from map(Posterior._make, results)

    def decode(self, blocks: Iterable[np.ndarray], frames: int, length: int | None = None) -> Iterator[np.ndarray]:
        """The audio of latents, in blocks of consecutive samples.

        Args:
          blocks: consecutive `[n, lanes, latent_dim]`, `frames` in all.
          frames: of the latents.
          length: samples wanted; None for all that the frames give.

        Yields:
          `[n, lanes, in_channels]`, `length` samples in all.
        """
        available = self.model.decoded_length(frames)
        length = available if length is None else min(length, available)
        hop = self.model.hop_length
        covered = -(-length // hop)  # With odd strides, the audio is a little longer than a hop per frame.
        core, context = self._window("decode", max(frames, covered))
        step = functools.partial(_decode, model=self.model, core=core, context=context)
        for (block,) in self._run(step, blocks, covered, frames, 1, core * hop, length):
            yield block

    def frames_of(self, length: int) -> int:
        """The fewest latent frames that decode to `length` samples or more."""
        frames = max(1, -(-length // self.model.hop_length))
        while frames > 1 and self.model.decoded_length(frames - 1) >= length:
            frames -= 1
        return frames

    def _window(self, what, frames):
        """Frames of core and context of the windows for a signal."""
        for size in self._sizes:
            if frames <= size:
                return size, Context(0, -(-self.model.decoded_length(size) // self.model.hop_length) - size)
        return self._sizes[-1], self._contexts[what]

    def _run(self, step, blocks, covered, length, hop, kept, total, *args):
        """Results of `step` on the windows that cover `covered` frames, each `[<= kept, lanes, ...]`, `total` in all.

        `length` of the signal, and `hop` per frame, are in units of the blocks.
        """
        core, context = step.keywords["core"], step.keywords["context"]
        if length * self.model.hop_length > _MAX_POSITION * hop:
            most = _MAX_POSITION * hop // self.model.hop_length
            unit = "latent frames" if hop == 1 else "samples at the model's rate"
            raise DataError(f"{length:,} {unit} are too many to count in 32 bits; cut into pieces of at most {most:,}")
        sliding = Sliding(blocks)
        lanes = sliding.shape[0]

        def rows():
            for first in range(0, covered, core):
                start = (first - context.before) * hop
                window = sliding.window(start, (first + core + context.after) * hop)
                for lane in range(lanes):
                    yield window[:, lane], start, length, lane

        done, group = 0, []
        for row in self._rows(step, rows(), args):
            group.append(row)
            if len(group) == lanes:
                left = total - done
                block = tuple(np.stack(parts, axis=1)[:left] for parts in zip(*group, strict=True))
                done, group = done + min(kept, left), []
                yield block

    def _rows(self, step, rows, args):
        """The results of single windows, computed in batches, one batch ahead of what is asked for."""
        pending = collections.deque()
        place = functools.partial(mesh.place_batch, self._devices)
        for batch in _batched(rows, self._batch_size):
            data, *numbers = zip(*batch, strict=True)
            empty = self._batch_size - len(batch)
            data = np.stack([*data, *[np.zeros_like(data[0])] * empty])
            start, length, lane = (place(np.array([*column, *[0] * empty], np.int32)) for column in numbers)
            results = _compiled(step)(self._variables, place(data), Span(start, length), lane, *args)
            pending.append((len(batch), results))
            if len(pending) == _IN_FLIGHT:
                yield from _unstack(*pending.popleft())
        for batch in pending:
            yield from _unstack(*batch)


class Sliding:
    """Consecutive blocks seen through a window that only moves forward, with zeros before and after them.

    Args:
      blocks: arrays that continue each other along the first axis; at least one.
    """

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks = iter(blocks)
        first = next(self._blocks, None)
        if first is None:
            raise ValueError("there are no blocks to look at")
        self._held, self._begin = first, 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one position."""
        return self._held.shape[1:]

    def window(self, start: int, stop: int) -> np.ndarray:
        """Positions `start` to `stop`; what lies before `start` is forgotten."""
        parts, begin = [self._held], self._begin
        end = begin + len(self._held)
        while end < stop and (block := next(self._blocks, None)) is not None:
            if end <= start:  # gone by before it was looked at
                parts, begin = [], end
            parts.append(block)
            end += len(block)
        held = np.concatenate(parts) if len(parts) > 1 else parts[0]
        drop = min(max(0, start - begin), len(held))
        self._held, self._begin = held[drop:], begin + drop
        window = np.zeros((stop - start, *self.shape), held.dtype)
        low, high = max(start, self._begin), min(stop, end)
        if low < high:
            window[low - start : high - start] = self._held[low - self._begin : high - self._begin]
        return window


def _batched(items, size):
    items = iter(items)
    while batch := list(itertools.islice(items, size)):
        yield batch


def _unstack(count, results):
    return zip(*(np.asarray(result)[:count] for result in results), strict=True)


@functools.lru_cache(maxsize=64)
def _compiled_step(function, options):
    return jax.jit(functools.partial(function, **dict(options)))


def _compiled(step):
    return _compiled_step(step.func, tuple(sorted(step.keywords.items())))


def _encode(variables, audio, span, lane, key, *, model, core, context, sample):
    drawn = None
    if sample:
        frames = span.start[:, None] // model.hop_length + jnp.arange(model.frames(audio.shape[1]))
        drawn = noise(key, lane, frames, model.latent_dim)
    posterior = model.apply(variables, audio, deterministic=not sample, noise=drawn, span=span, method=AudioVAE.encode)
    return tuple(x[:, context.before : context.before + core] for x in posterior)


def noise(key: jax.Array, lane: jax.Array, frames: jax.Array, width: int) -> jax.Array:
    """The noise of a key: standard normal `[B, n, width]` for `lane: [B]` and `frames: [B, n]`."""
    return jax.vmap(jax.vmap(functools.partial(_noise, key, width), (None, 0)))(lane, frames)


def _noise(key, width, lane, frame):
    return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, lane), frame), (width,))


def _decode(variables, z, span, lane, *, model, core, context):
    del lane
    audio = model.apply(variables, z, span=span, method=AudioVAE.decode)
    return (audio[:, context.before * model.hop_length :][:, : core * model.hop_length],)
