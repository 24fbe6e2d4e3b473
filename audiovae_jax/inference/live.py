"""Live encoding and decoding, in blocks of any size.

Results are returned as soon as they are certain.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from audiovae_jax.errors import DataError, whole_number
from audiovae_jax.inference import arrays
from audiovae_jax.models import layer_list
from audiovae_jax.models.audio_vae import AudioVAE


class _Stream:
    """A network that runs on a stream, in steps of `block_frames` latent frames.

    Args:
      step: a function of `(variables, states, x, index, length)`, see `_encode`.
      variables: with folded weight norm.
      layers: the network's layers.
      block_frames: latent frames of one step.
      hop, hop_out: number of inputs and of results per latent frame.
      width: channels of the input.
      lengths: returns the length of the whole input and of the whole result, given the number of inputs.

    Raises:
      DataError: `block_frames` is not a positive integer.
    """

    def __init__(
        self, step, variables: dict, layers, *, block_frames: int, hop: int, hop_out: int, width: int, lengths: Callable
    ):
        block_frames = whole_number(block_frames, "block_frames", DataError)
        self._step, self._variables, self._lengths = step, variables, lengths
        self._size, self._size_out = block_frames * hop, block_frames * hop_out
        self._first = layer_list.first_output(layers)
        self._steady = layer_list.blocks_until_steady(layers, self._size)
        states, result = jax.eval_shape(
            step, variables, (), jax.ShapeDtypeStruct((self._size, width), np.float32), 0, 0
        )
        self._start = jax.tree.map(lambda state: jnp.zeros(state.shape, state.dtype), states)
        self._empty, self._no_results = (np.zeros((0, n), np.float32) for n in (width, result.shape[-1]))
        self._restart()

    def push(self, x: Any) -> np.ndarray:
        """Add inputs to the stream, in a block of any size.

        Args:
          x: `[n, channels]` floats: audio at the model's sample rate for an encoder, calibrated latents for a decoder.

        Returns:
          The results that these inputs make certain, in order: `[m, channels]`. There may be none.

        Raises:
          DataError: the block has another shape, or numbers that are not finite.
        """
        x = arrays.as_floats(x, "a block", "floats")
        if x.ndim != 2 or x.shape[1] != self._empty.shape[1]:
            raise DataError(f"a block must be [n, {self._empty.shape[1]}], not {list(x.shape)}")
        arrays.require_finite(x, "a block")
        self._held, self._count = np.concatenate([self._held, x]), self._count + len(x)
        results = []
        while len(self._held) >= self._size:
            results.append(self._next())
        return np.concatenate([self._no_results, *results])

    def flush(self) -> np.ndarray:
        """End the stream, and return its remaining results.

        The next `push` starts another stream.
        """
        length, total = self._lengths(self._count) if self._count else (0, 0)
        results, returned = [], max(0, self._position())
        while self._position() < total:
            self._held = np.pad(self._held, ((0, max(0, self._size - len(self._held))), (0, 0)))
            results.append(self._next(length))
        self._restart()
        return np.concatenate([self._no_results, *results])[: total - returned]

    def _restart(self):
        self._held, self._count, self._index, self._states = self._empty, 0, 0, self._start

    def _position(self):
        """Return the position of the next result; negative until the delay has passed."""
        return self._index * self._size_out + self._first

    def _next(self, length=None):
        """Run a step on the oldest inputs.

        `length` is the length of the whole input, if it is known.
        """
        # Once every layer is past the signal's start, all steps are alike. They share one index, so positions never
        # overflow.
        index = min(self._index, self._steady)
        passed = (self._index - index) * self._size
        length = (index + 3) * self._size if length is None else length - passed
        x, self._held = self._held[: self._size], self._held[self._size :]
        self._states, y = self._step(self._variables, self._states, x, index, length)
        early = max(0, -self._position())
        self._index += 1
        return np.asarray(y)[early:]


class StreamEncoder(_Stream):
    """Encodes a live signal, see `Codec.stream_encoder`.

    Attributes:
      latency: samples from the first sample of a frame to the return of its latents.
    """

    def __init__(self, model: AudioVAE, variables: dict, frames_of: Callable[[int], int], block_frames: int):
        super().__init__(
            _compiled(_encode, model),
            variables,
            layer_list.encoder_layers(model),
            block_frames=block_frames,
            hop=model.hop_length,
            hop_out=1,
            width=model.in_channels,
            lengths=lambda count: (model.decoded_length(frames_of(count)), frames_of(count)),
        )
        self.latency = (self._size_out - self._first) * model.hop_length


class StreamDecoder(_Stream):
    """Decodes live latents, see `Codec.stream_decoder`.

    Attributes:
      latency: samples of audio that belong to pushed latents, and that are returned later.
    """

    def __init__(self, model: AudioVAE, variables: dict, block_frames: int):
        super().__init__(
            _compiled(_decode, model),
            variables,
            layer_list.decoder_layers(model),
            block_frames=block_frames,
            hop=1,
            hop_out=model.hop_length,
            width=model.latent_dim,
            lengths=lambda count: (count, model.decoded_length(count)),
        )
        self.latency = self._size_out - model.hop_length - self._first


def _encode(model, variables, states, x, index, length):
    """Return the next states and the `z` of one step.

    Args:
      model, variables: with folded weight norm.
      states: of the layers.
      x: `[size, channels]`.
      index: number of steps before this one.
      length: samples of the whole signal.
    """
    block = layer_list.Block(x[None], 0, index, length)
    layers = layer_list.encoder_layers(model)
    states, block = layer_list.run(layers, variables["params"]["encoder"], states, block, model.dtype)
    return states, model.apply(variables, block.x, deterministic=True, method=AudioVAE.sample).z[0]


def _decode(model, variables, states, z, index, length):
    z = model.apply(variables, z[None], method=AudioVAE.uncalibrated)
    block = layer_list.Block(z, 0, index, length)
    layers = layer_list.decoder_layers(model)
    states, block = layer_list.run(layers, variables["params"]["decoder"], states, block.cleared(), model.dtype)
    audio = block.x[0].astype(jnp.float32)
    return states, jnp.tanh(audio) if model.final_tanh else audio


@functools.lru_cache(maxsize=16)
def _compiled(function, model):
    return jax.jit(functools.partial(function, model))
