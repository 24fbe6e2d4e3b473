"""Import from and export to files of the PyTorch system, without torch."""

from audiovae_jax.torch_io.audio_vae import import_audio_vae as import_audio_vae
from audiovae_jax.torch_io.discriminator import import_discriminator as import_discriminator
from audiovae_jax.torch_io.export import export_audio_vae as export_audio_vae
from audiovae_jax.torch_io.files.reader import read_checkpoint as read_checkpoint
