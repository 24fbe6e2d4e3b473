"""`import_discriminator`: torch's discriminator weights as parameters of ours."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from audiovae_jax.errors import CheckpointError
from audiovae_jax.torch_io import state_dict as torch_state_dict

PyTree = Any
_PREFIX = "discriminator."
# Long enough for any STFT; the parameters do not depend on it.
_LENGTH = 65536


def import_discriminator(state_dict: Mapping[str, Any], discriminator: nn.Module) -> PyTree:
    """The parameters of a discriminator of the PyTorch system.

    Args:
      state_dict: as `read_checkpoint` gives it: the discriminator's own, or one that has it under
        `discriminator.`, as a Lightning checkpoint's. Constants in it (windows, filterbanks) are passed over.
      discriminator: `EnCodecDiscriminator`, or one of its parts alone, as the weights are of.

    Returns:
      `params` for `discriminator.apply({"params": params}, audio)`.

    Raises:
      CheckpointError: a key is missing, surplus, or of another shape; the message lists them.
    """
    return read_discriminator(state_dict, discriminator).params


def read_discriminator(state_dict: Mapping[str, Any], discriminator: nn.Module) -> torch_state_dict.Filled:
    """`import_discriminator` with the account of what became of each tensor."""
    channels = getattr(discriminator, "in_channels", 1)
    audio = jax.ShapeDtypeStruct((1, _LENGTH, channels), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    shapes = jax.eval_shape(discriminator.init, key, audio)["params"]
    filled = torch_state_dict.fill(shapes, discriminator_tensors(state_dict))
    account = torch_state_dict.explain(filled.problems)
    if account:
        raise CheckpointError(f"the state dict does not fit {type(discriminator).__name__}:\n{account}")
    return filled


def discriminator_tensors(state_dict: Mapping[str, Any]) -> dict:
    """The discriminator's own tensors of a state dict that may hold more."""
    tensors = torch_state_dict.unwrapped(dict(state_dict))
    if not any(key.startswith(_PREFIX) for key in tensors):
        return tensors
    return {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(_PREFIX)}
