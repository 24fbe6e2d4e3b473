"""Train and use a stereo audio VAE with adversarial losses, in JAX and Flax."""

from audiovae_jax.discriminators import EnCodecDiscriminator as EnCodecDiscriminator
from audiovae_jax.losses import AdversarialLossCalculator as AdversarialLossCalculator
from audiovae_jax.model import AudioVAE as AudioVAE

__version__ = "0.1.0"
from audiovae_jax.saved_model import load_model as load_model
from audiovae_jax.saved_model import save_model as save_model
