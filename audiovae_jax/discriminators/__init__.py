"""Discriminators: linen modules, `audio [B, T, C] -> (logits, feature_maps)`."""

from audiovae_jax.discriminators.band import BandSplitDiscriminator as BandSplitDiscriminator
from audiovae_jax.discriminators.cqt import MultiScaleSubBandCQTDiscriminator as MultiScaleSubBandCQTDiscriminator
from audiovae_jax.discriminators.ensemble import EnCodecDiscriminator as EnCodecDiscriminator
from audiovae_jax.discriminators.mel_stft import MultiScaleMelSTFTDiscriminator as MultiScaleMelSTFTDiscriminator
from audiovae_jax.discriminators.period import MultiPeriodDiscriminator as MultiPeriodDiscriminator
from audiovae_jax.discriminators.scale import MultiScaleDiscriminator as MultiScaleDiscriminator
from audiovae_jax.discriminators.stft import MultiScaleSTFTDiscriminator as MultiScaleSTFTDiscriminator
