"""Train and use a stereo audio VAE with adversarial losses, in JAX and Flax.

A name is imported when it is first used, so that `import audiovae_jax` is fast and imports no JAX.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # for type checkers and editors; the same names as in _MODULES
    from audiovae_jax import discriminators as discriminators
    from audiovae_jax import losses as losses
    from audiovae_jax import torch_io as torch_io
    from audiovae_jax.discriminators import EnCodecDiscriminator as EnCodecDiscriminator
    from audiovae_jax.inference.codec import Codec as Codec
    from audiovae_jax.inference.latent_dataset import LatentDataset as LatentDataset
    from audiovae_jax.inference.latents import Latents as Latents
    from audiovae_jax.losses import AdversarialLossCalculator as AdversarialLossCalculator
    from audiovae_jax.models.audio_vae import AudioVAE as AudioVAE
    from audiovae_jax.persistence.publication import push_to_hub as push_to_hub
    from audiovae_jax.persistence.saved_model import load_from_lightning_checkpoint as load_from_lightning_checkpoint
    from audiovae_jax.persistence.saved_model import load_model as load_model
    from audiovae_jax.persistence.saved_model import save_model as save_model
    from audiovae_jax.persistence.training_state import load_training_state as load_training_state

__version__ = "0.1.0"

_MODULES = {  # the module of each public name
    "AdversarialLossCalculator": "losses",
    "AudioVAE": "models.audio_vae",
    "Codec": "inference.codec",
    "EnCodecDiscriminator": "discriminators",
    "LatentDataset": "inference.latent_dataset",
    "Latents": "inference.latents",
    "load_from_lightning_checkpoint": "persistence.saved_model",
    "load_model": "persistence.saved_model",
    "load_training_state": "persistence.training_state",
    "push_to_hub": "persistence.publication",
    "save_model": "persistence.saved_model",
}
_PACKAGES = ("discriminators", "losses", "torch_io")  # public as well
__all__ = [*_MODULES, *_PACKAGES]


def __getattr__(name: str):
    """Import and return a public name. Python calls this once per name."""
    if name in _PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
