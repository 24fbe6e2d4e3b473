"""Losses as pure functions, `fn(*, prediction, target, **options) -> scalar`."""

from audiovae_jax.losses.adversarial import AdversarialLossCalculator as AdversarialLossCalculator
from audiovae_jax.losses.kl import kl_bits_per_second as kl_bits_per_second
from audiovae_jax.losses.kl import kl_divergence as kl_divergence
from audiovae_jax.losses.kl import target_kl as target_kl
from audiovae_jax.losses.mel import multi_scale_mel as multi_scale_mel
from audiovae_jax.losses.phase import phase_derivatives as phase_derivatives
from audiovae_jax.losses.phase import stereo_correlation as stereo_correlation
from audiovae_jax.losses.spectral import log_spectral_distance as log_spectral_distance
from audiovae_jax.losses.spectral import mid_side_stft as mid_side_stft
from audiovae_jax.losses.spectral import multi_resolution_stft as multi_resolution_stft
from audiovae_jax.losses.spectral import sum_and_difference_stft as sum_and_difference_stft
from audiovae_jax.losses.waveform import sd_sdr as sd_sdr
from audiovae_jax.losses.waveform import si_sdr as si_sdr
from audiovae_jax.losses.waveform import waveform_l1 as waveform_l1
from audiovae_jax.losses.weighted import WeightedLosses as WeightedLosses
