"""Exact inference on signals of any length, in bounded memory.

A signal is split into windows of one fixed shape, so that nothing is compiled per file. A window has a core, whose
result is kept, and context on both sides that covers the model's receptive field. Beyond the ends of the signal, the
activations of every layer are set to zero (see `span`). A single pass pads its layers with the same zeros, so the
results are equal at the edges too.

A signal that fits into one window needs no context. It uses the smallest sufficient window of a few sizes.
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

# Elements of one layer's activations in a batch of windows: 32 MB in float32. About ten such arrays are live at once.
_ACTIVATION_BUDGET = 1 << 23
_MIN_FRAMES = 16  # smallest window for short signals; sizes double from there
_IN_FLIGHT = 2  # batches
_MAX_POSITION = 2**31 - 2**24  # samples


class ChunkedModel:
    """Encodes and decodes streams of `lanes` parallel signals of equal length.

    Args:
      model, variables: the model.
      chunk_length: samples in the core of a window, rounded up to whole latent frames; by default as many as the
        memory budget allows.
      batch_size: windows computed at once, rounded up to a multiple of the number of devices; by default one per
        device on CPU and eight elsewhere.

    Raises:
      DataError: the chunk length or batch size is not a positive integer, or a signal is too long.
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
        widest = max(model.base_channels, model.decoder_base_channels or 0)
        samples = _ACTIVATION_BUDGET / (widest * rows)
        # Results of the context are discarded. A core several times as long keeps this overhead small.
        least = 4 * max(sum(context) for context in self._contexts.values())
        largest = max(least, 1 << int(math.log2(max(1, samples / model.hop_length))))
        halvings = max(0, int(math.log2(largest / _MIN_FRAMES)))
        self._sizes = tuple(-(-largest // 2**i) for i in reversed(range(halvings + 1)))

    @property
    def windows(self) -> dict[str, Any]:
        """Return the settings that affect rounding.

        These are the window sizes in frames, and the number of windows that a device computes at once.
        """
        return {"window_frames": list(self._sizes), "windows_at_once": self._batch_size // self._devices.size}

    def encode(self, blocks: Iterable[np.ndarray], length: int, key: jax.Array | None = None) -> Iterator[Posterior]:
        """Encode a signal to its posterior, in blocks of consecutive frames.

        Args:
          blocks: consecutive `[n, lanes, in_channels]`, `length` samples in total.
          length: samples of the signal. Its end is zero-padded to the decoded length of `frames_of(length)` frames.
          key: key to sample `z`; None for the mean. The noise depends only on the key, the lane and the frame, not
            on the windows.

        Yields:
          `(z, mean, logvar)`, each `[n, lanes, latent_dim]`, `frames_of(length)` frames in total.
        """
        frames = self.frames_of(length)
        padded = self.model.decoded_length(frames)
        core, context = self._window("encode", frames)
        step = functools.partial(_encode, model=self.model, core=core, context=context, sample=key is not None)
        key = jax.random.key(0) if key is None else key
        results = self._run(step, blocks, frames, padded, self.model.hop_length, core, frames, key)
        yield from map(Posterior._make, results)

    def decode(self, blocks: Iterable[np.ndarray], frames: int, length: int | None = None) -> Iterator[np.ndarray]:
        """Decode latents to audio, in blocks of consecutive samples.

        Args:
          blocks: consecutive `[n, lanes, latent_dim]`, `frames` in total.
          frames: number of latent frames.
          length: number of samples to return; None for all that the frames decode to.

        Yields:
          `[n, lanes, in_channels]`, `length` samples in total.
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
        """Return the smallest number of frames that decode to at least `length` samples."""
        frames = max(1, -(-length // self.model.hop_length))
        while frames > 1 and self.model.decoded_length(frames - 1) >= length:
            frames -= 1
        while self.model.decoded_length(frames) < length:
            frames += 1
        return frames

    def _window(self, what, frames):
        """Return the core, in frames, and the context of the windows for a signal."""
        for size in self._sizes:
            if frames <= size:
                return size, Context(0, -(-self.model.decoded_length(size) // self.model.hop_length) - size)
        return self._sizes[-1], self._contexts[what]

    def _run(self, step, blocks, covered, length, hop, kept, total, *args):
        """Iterate over the results of `step` on all windows of a signal.

        Args:
          step: a partial of `_encode` or `_decode`.
          blocks: consecutive blocks of the signal.
          covered: number of frames that the windows must cover.
          length: length of the signal, in units of the blocks.
          hop: units of the blocks per frame.
          kept: maximum length of one result.
          total: length of all results together.
          *args: further arguments of `step`.

        Yields:
          A tuple of arrays `[<= kept, lanes, ...]`.
        """
        core, context = step.keywords["core"], step.keywords["context"]
        if length * self.model.hop_length > _MAX_POSITION * hop:
            most = _MAX_POSITION * hop // self.model.hop_length
            unit = "latent frames" if hop == 1 else "samples at the model's rate"
            raise DataError(f"{length:,} {unit} are too many for 32-bit positions; give at most {most:,} at a time")
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
        """Iterate over results of single windows, computed in batches, one batch ahead."""
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
    """A forward-moving window over consecutive blocks, with zeros on both sides.

    Args:
      blocks: at least one array; each continues the previous one along the first axis.

    Raises:
      ValueError: there are no blocks.
    """

    def __init__(self, blocks: Iterable[np.ndarray]):
        self._blocks = iter(blocks)
        first = next(self._blocks, None)
        if first is None:
            raise ValueError("there are no blocks")
        self._held, self._begin = first, 0

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one position."""
        return self._held.shape[1:]

    def window(self, start: int, stop: int) -> np.ndarray:
        """Return positions `start` to `stop`, and discard those before `start`."""
        parts, begin = [self._held], self._begin
        end = begin + len(self._held)
        while end < stop and (block := next(self._blocks, None)) is not None:
            if end <= start:  # the block lies before the window
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
    """Return standard normal `[B, n, width]` for `lane: [B]` and `frames: [B, n]`."""
    return jax.vmap(jax.vmap(functools.partial(_noise, key, width), (None, 0)))(lane, frames)


def _noise(key, width, lane, frame):
    return jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, lane), frame), (width,))


def _decode(variables, z, span, lane, *, model, core, context):
    del lane
    audio = model.apply(variables, z, span=span, method=AudioVAE.decode)
    return (audio[:, context.before * model.hop_length :][:, : core * model.hop_length],)
