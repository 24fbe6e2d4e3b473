"""The base class of discriminators, with the loop over sub-discriminators."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from audiovae_jax.models.layers import normalized_dtype
from audiovae_jax.ops import scheduling
from audiovae_jax.ops.interleaved import is_interleaved

# Logits and feature maps: for each logits array, the activations of every convolution before it.
Output = tuple[list[jax.Array], list[list[jax.Array]]]


class Discriminator(nn.Module):
    """Sub-discriminators that each pass one view of the audio through one stack.

    A subclass defines `in_channels`, `views` and `stack`. Training then runs it once on real and generated audio
    together. The generator's gradient is computed without recomputing feature maps. Any other linen module
    `audio -> (logits, feature_maps)` is also a valid discriminator. Training calls it separately on real and generated
    audio.
    """

    stack_name = "discriminators"

    def __post_init__(self):
        if hasattr(self, "dtype"):
            object.__setattr__(self, "dtype", normalized_dtype(self.dtype))
        super().__post_init__()

    def __call__(self, audio) -> Output:
        """Return logits and feature maps of `audio: [B, T, C]`, all batch-first."""
        return split(self.discriminate(audio))

    def discriminate(self, audio, known_maps: list[list] | None = None) -> Output:
        """Return the same as `__call__`, possibly as `Interleaved` arrays.

        An `Interleaved` array contains several logits of one shape.

        Args:
          audio: `[B, T, C]`.
          known_maps: the feature maps of `audio`, if already known. Only gradients are computed then, no logits.

        Raises:
          ValueError: `audio` is not `[B, T, in_channels]`.
        """
        require_audio(audio, self.in_channels, type(self).__name__)
        return self.each_view(audio, known_maps)

    @nn.compact
    def each_view(self, x, known_maps: list[list] | None) -> Output:
        """Apply every sub-discriminator to its view of `x`, and return the outputs."""
        logits, feature_maps = [], []
        for i, view in enumerate(self.views()):
            known = known_maps and known_maps[i]
            stack = self.stack(name=f"{self.stack_name}_{i}")
            one_logits, one_maps = stack(view(in_turn(x, logits, known)), known)
            logits.append(one_logits)
            feature_maps.append(one_maps)
        return logits, feature_maps

    def views(self) -> Sequence[Callable[[jax.Array], jax.Array]]:
        """Return one function per sub-discriminator, from the audio to the stack's input."""
        raise NotImplementedError

    def stack(self, name: str) -> nn.Module:
        """Return one stack, `(view, known_maps) -> (logits, feature_maps)`."""
        raise NotImplementedError


def takes_known_maps(discriminator: nn.Module) -> bool:
    """Return whether training can use `discriminate`: `__call__` is not overridden."""
    if not isinstance(discriminator, Discriminator):
        return False
    classes = type(discriminator).__mro__
    return not any("__call__" in vars(cls) for cls in classes[: classes.index(Discriminator)])


def in_turn(x, earlier: list, known_maps=None):
    """Return `x`, scheduled after the last logits of `earlier` on CPU.

    XLA would otherwise compute all sub-discriminators at once on CPU, which takes twice the memory. With known maps no
    logits are computed, so `x` is returned unchanged.
    """
    return scheduling.after(x, jax.tree.leaves(earlier[-1])[0]) if earlier and known_maps is None else x


def split(output: Output) -> Output:
    """Split every `Interleaved` array of an output.

    The result lists all first parts, then all second parts and so on, then the arrays that are not interleaved.
    """
    alone, interleaved = [], []
    for logits, maps in zip(*output, strict=True):
        if is_interleaved(logits):
            interleaved.append([(x, list(m)) for x, *m in zip(logits.split(), *(x.split() for x in maps), strict=True)])
        else:
            alone.append((logits, maps))
    entries = [entry for parts in zip(*interleaved, strict=True) for entry in parts] + alone
    return [logits for logits, _ in entries], [maps for _, maps in entries]


def require_audio(audio, in_channels: int, name: str):
    """Raise ValueError unless `audio` is `[B, T, in_channels]`."""
    if audio.ndim != 3 or audio.shape[-1] != in_channels:
        raise ValueError(f"{name} needs audio [B, T, {in_channels}], not {tuple(audio.shape)}")


def check_output(output: Any, name: str) -> Output:
    """Raise TypeError unless `output` is valid for a discriminator."""

    def is_array(x):
        return hasattr(x, "shape") and hasattr(x, "dtype")

    wanted = f"{name} must return (logits: list of arrays, feature_maps: list of lists of arrays)"
    if not isinstance(output, tuple) or len(output) != 2:
        raise TypeError(f"{wanted}, but it returned {_describe(output)}")
    logits, feature_maps = output
    if not isinstance(logits, (list, tuple)) or not logits or not all(is_array(x) for x in logits):
        raise TypeError(f"{wanted}, but its logits are {_describe(logits)}")
    if not isinstance(feature_maps, (list, tuple)) or not all(
        isinstance(maps, (list, tuple)) and all(is_array(x) for x in maps) for maps in feature_maps
    ):
        raise TypeError(f"{wanted}, but its feature_maps are {_describe(feature_maps)}")
    if not any(len(maps) for maps in feature_maps):
        raise TypeError(f"{wanted}, but its feature_maps contain no array, so there is nothing to match")
    return output


def _describe(value):
    if isinstance(value, (list, tuple)):
        kinds = sorted({"array" if hasattr(x, "shape") else type(x).__name__ for x in value})
        return f"a {type(value).__name__} of {len(value)} ({', '.join(kinds) or 'empty'})"
    if hasattr(value, "shape"):
        return f"one array of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
