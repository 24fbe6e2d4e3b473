"""Train and use a stereo audio VAE with adversarial losses, in JAX and Flax."""

from audiovae_jax.discriminators import EnCodecDiscriminator as EnCodecDiscriminator
from audiovae_jax.inference.codec import Codec as Codec
from audiovae_jax.inference.latents import Latents as Latents
from audiovae_jax.losses import AdversarialLossCalculator as AdversarialLossCalculator
from audiovae_jax.models.audio_vae import AudioVAE as AudioVAE
from audiovae_jax.persistence.saved_model import load_from_lightning_checkpoint as load_from_lightning_checkpoint
from audiovae_jax.persistence.saved_model import load_model as load_model
from audiovae_jax.persistence.saved_model import save_model as save_model
from audiovae_jax.persistence.training_state import load_training_state as load_training_state

__version__ = "0.1.0"
