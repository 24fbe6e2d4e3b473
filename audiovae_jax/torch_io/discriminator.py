"""`import_discriminator`: torch's discriminator weights as our parameters."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from audiovae_jax import discriminators
from audiovae_jax.errors import CheckpointError, as_checkpoint_error
from audiovae_jax.ops import signal
from audiovae_jax.torch_io import layout
from audiovae_jax.torch_io import state_dict as torch_state_dict

PyTree = Any
_PREFIX = "discriminator."
# Long enough for any STFT. The parameters do not depend on it.
_LENGTH = 65536


def import_discriminator(state_dict: Mapping[str, Any], discriminator: nn.Module) -> PyTree:
    """Import the parameters of a discriminator of the PyTorch system.

    Args:
      state_dict: as `read_checkpoint` returns it, of the discriminator only, or with keys under
        `discriminator.`, as in a Lightning checkpoint. Windows and filterbanks in it are compared, not imported.
      discriminator: `EnCodecDiscriminator`, or the single part that the weights belong to.

    Returns:
      `params` for `discriminator.apply({"params": params}, audio)`.

    Raises:
      CheckpointError: keys are missing, surplus or of another shape (the message lists them), or the weights were
        trained on spectrograms other than those of `discriminator`.
    """
    return jax.tree.map(jnp.asarray, read_discriminator(state_dict, discriminator).params)


def read_discriminator(state_dict: Mapping[str, Any], discriminator: nn.Module) -> torch_state_dict.Filled:
    """Like `import_discriminator`, with numpy arrays and a line per tensor."""
    channels = getattr(discriminator, "in_channels", 1)
    audio = jax.ShapeDtypeStruct((1, _LENGTH, channels), jnp.float32)
    with as_checkpoint_error(f"{type(discriminator).__name__} cannot be created"):
        key = jax.eval_shape(lambda: jax.random.key(0))
        shapes = jax.eval_shape(discriminator.init, key, audio)["params"]
    tensors = discriminator_tensors(state_dict)
    _check_constants(tensors, discriminator)
    filled = torch_state_dict.fill(shapes, tensors, reason_to_leave_out=layout.reason_of_constant)
    account = torch_state_dict.explain(filled.problems)
    if account:
        raise CheckpointError(f"the state dict does not fit {type(discriminator).__name__}:\n{account}")
    return filled


def discriminator_tensors(state_dict: Mapping[str, Any]) -> dict:
    """The discriminator's tensors of a state dict that may contain others."""
    tensors = torch_state_dict.unwrapped(dict(state_dict))
    if not any(key.startswith(_PREFIX) for key in tensors):
        return tensors
    return {key.removeprefix(_PREFIX): tensor for key, tensor in tensors.items() if key.startswith(_PREFIX)}


def _check_constants(tensors, discriminator):
    """Compare a file's windows and filterbanks with ours.

    The shapes of the weights do not depend on them.
    """
    for key, (expected, configured) in _constants(discriminator).items():
        found = tensors.get(key)
        if found is not None and not _is_near(found, expected):
            raise CheckpointError(
                f"{key} of shape {found.shape} is not what {type(discriminator).__name__} computes with {configured}; "
                "give the arguments that it was trained with"
            )


def _is_near(found, expected):
    if found.shape != expected.shape or found.dtype.itemsize > 8:
        return False
    # Half-precision runs also round constants. Filterbanks of torchaudio and librosa differ by 1e-8.
    rounding = float(ml_dtypes.finfo(found.dtype).eps) if torch_state_dict.is_floating(found) else 0.0
    tolerance = 1e-6 + rounding * np.abs(expected).max()
    return bool(np.abs(found.astype(np.float64) - expected).max() <= tolerance)


def _constants(discriminator):
    """`{key: (array, arguments)}` of the constants that torch keeps next to weights."""
    if isinstance(discriminator, discriminators.EnCodecDiscriminator):
        d = discriminator
        found = {f"msstft.discriminators.{i}.window": _window(n, n) for i, n in enumerate(d.n_ffts)}
        if not d.use_mel_stft:
            return found
        banks = _filterbanks(
            d.mel_stft_n_ffts, d.mel_stft_n_mels, d.mel_stft_sample_rate, d.mel_stft_f_min, d.mel_stft_f_max
        )
        return found | {f"mel_stft.{key}": value for key, value in banks.items()}
    if isinstance(discriminator, discriminators.MultiScaleSTFTDiscriminator):
        lengths = discriminator.win_lengths or discriminator.n_ffts
        return {
            f"discriminators.{i}.window": _window(n, win)
            for i, (n, win) in enumerate(zip(discriminator.n_ffts, lengths, strict=True))
        }
    if isinstance(discriminator, discriminators.MultiScaleMelSTFTDiscriminator):
        d = discriminator
        return _filterbanks(d.n_ffts, d.n_mels, d.sample_rate, d.f_min, d.f_max)
    if isinstance(discriminator, discriminators.BandSplitDiscriminator):
        return {"window": _window(discriminator.n_fft, discriminator.n_fft)}
    return {}


def _window(n_fft, length):
    return np.hanning(length + 1)[:-1], f"n_fft={n_fft}, win_length={length}"


def _filterbanks(n_ffts, n_mels, sample_rate, f_min, f_max):
    return {
        f"discriminators.{i}.mel_transform.mel_scale.fb": (
            signal.mel_filterbank(sample_rate, n_fft, mels, f_min, f_max),
            f"n_fft={n_fft}, n_mels={mels}, sample_rate={sample_rate}, f_min={f_min}, f_max={f_max}",
        )
        for i, (n_fft, mels) in enumerate(zip(n_ffts, n_mels, strict=True))
    }
