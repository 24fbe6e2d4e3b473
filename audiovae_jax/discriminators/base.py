"""The contract of a discriminator, and the loop over its sub-discriminators."""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax

from audiovae_jax.models.layers import normalized_dtype
from audiovae_jax.ops import scheduling
from audiovae_jax.ops.interleaved import is_interleaved

# Logits, and for each of them the activations of every convolution before it.
Output = tuple[list[jax.Array], list[list[jax.Array]]]


class Discriminator(nn.Module):
    """Sub-discriminators, each of which passes one view of the audio through one stack of convolutions.

    A subclass defines `in_channels`, `views` and `stack`. Training then runs it once on real and generated audio
    together, and computes the generator's gradient without computing feature maps again. Any other linen module
    `audio -> (logits, feature_maps)` is a valid discriminator too, and is called on each.
    """

    stack_name = "discriminators"

    def __post_init__(self):
        if hasattr(self, "dtype"):
            object.__setattr__(self, "dtype", normalized_dtype(self.dtype))
        super().__post_init__()

    def __call__(self, audio) -> Output:
        """`audio: [B, T, C]` to logits and feature maps, each with B leading."""
        return split(self.discriminate(audio))

    def discriminate(self, audio, known_maps: list[list] | None = None) -> Output:
        """Like `__call__`, but may return `Interleaved` arrays, which hold several logits of one shape.

        Args:
          audio: `[B, T, C]`.
          known_maps: its feature maps, if they are known. Then only gradients are computed, no logits.

        Raises:
          ValueError: `audio` is not `[B, T, in_channels]`.
        """
        require_audio(audio, self.in_channels, type(self).__name__)
        return self.each_view(audio, known_maps)

    @nn.compact
    def each_view(self, x, known_maps: list[list] | None) -> Output:
        """The outputs of every sub-discriminator, where `x` is what the `views` take."""
        logits, feature_maps = [], []
        for i, view in enumerate(self.views()):
            known = known_maps and known_maps[i]
            stack = self.stack(name=f"{self.stack_name}_{i}")
            one_logits, one_maps = stack(view(in_turn(x, logits, known)), known)
            logits.append(one_logits)
            feature_maps.append(one_maps)
        return logits, feature_maps

    def views(self) -> Sequence[Callable[[jax.Array], jax.Array]]:
        """For each sub-discriminator, the function from the audio to what it looks at."""
        raise NotImplementedError

    def stack(self, name: str) -> nn.Module:
        """The convolutions of one sub-discriminator: `(view, known_maps) -> (logits, feature_maps)`."""
        raise NotImplementedError


def takes_known_maps(discriminator: nn.Module) -> bool:
    """Whether `discriminate` computes what calling the discriminator does: no subclass overrides `__call__`."""
    if not isinstance(discriminator, Discriminator):
        return False
    classes = type(discriminator).__mro__
    return not any("__call__" in vars(cls) for cls in classes[: classes.index(Discriminator)])


def in_turn(x, earlier: list, known_maps=None):
    """Return `x`, on a CPU scheduled after the last logits of `earlier`.

    XLA's own order computes all sub-discriminators at one time there, which takes twice the memory. With known maps
    nothing is computed that could be waited for.
    """
    return scheduling.after(x, jax.tree.leaves(earlier[-1])[0]) if earlier and known_maps is None else x


def split(output: Output) -> Output:
    """The output with every `Interleaved` array split: first all first parts, then all second parts, then the rest."""
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
        raise ValueError(f"{name} takes audio [B, T, {in_channels}], not {tuple(audio.shape)}")


def check_output(output: Any, name: str) -> Output:
    """Raise TypeError unless `output` is what a discriminator must return; say what it is instead."""

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
        raise TypeError(f"{wanted}, but its feature_maps hold no array, so there is nothing to match")
    return output


def _describe(value):
    if isinstance(value, (list, tuple)):
        kinds = sorted({"array" if hasattr(x, "shape") else type(x).__name__ for x in value})
        return f"a {type(value).__name__} of {len(value)} ({', '.join(kinds) or 'empty'})"
    if hasattr(value, "shape"):
        return f"one array of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
