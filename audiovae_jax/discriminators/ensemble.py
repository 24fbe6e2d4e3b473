"""The full discriminator, an ensemble of the others."""

import jax.numpy as jnp

from audiovae_jax.discriminators.base import Discriminator, Output, in_turn
from audiovae_jax.discriminators.cqt import MultiScaleSubBandCQTDiscriminator
from audiovae_jax.discriminators.mel_stft import MultiScaleMelSTFTDiscriminator
from audiovae_jax.discriminators.period import MultiPeriodDiscriminator
from audiovae_jax.discriminators.scale import MultiScaleDiscriminator
from audiovae_jax.discriminators.stft import MultiScaleSTFTDiscriminator
from audiovae_jax.models.layers import Dtype


class EnCodecDiscriminator(Discriminator):
    """An ensemble with outputs in the order MS-STFT, MSD, MPD, Mel-STFT, CQT.

    Attributes:
      stft_filters, n_ffts: see `MultiScaleSTFTDiscriminator`.
      in_channels: number of audio channels.
      msd_scales, use_msd: see `MultiScaleDiscriminator`.
      mpd_periods, mpd_channels, use_mpd: see `MultiPeriodDiscriminator`.
      mel_stft_*, use_mel_stft: see `MultiScaleMelSTFTDiscriminator`.
      cqt_*, use_cqt: see `MultiScaleSubBandCQTDiscriminator`.
      dtype: dtype of the convolutions.
      remat: applies to MS-STFT, Mel-STFT and CQT, see `SpectrogramStack`.
    """

    stft_filters: int = 32
    in_channels: int = 2
    n_ffts: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    msd_scales: tuple[int, ...] = (1, 2, 4)
    use_msd: bool = True
    mpd_periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    mpd_channels: tuple[int, ...] = (32, 128, 512, 1024, 1024)
    use_mpd: bool = True
    use_mel_stft: bool = False
    mel_stft_filters: int = 32
    mel_stft_n_ffts: tuple[int, ...] = (2048, 1024, 512, 256, 128)
    mel_stft_n_mels: tuple[int, ...] = (128, 128, 80, 64, 32)
    mel_stft_sample_rate: int = 44100
    mel_stft_f_min: float = 0.0
    mel_stft_f_max: float | None = None
    use_cqt: bool = False
    cqt_filters: int = 32
    cqt_bins_per_octave: tuple[int, ...] = (24, 36, 48)
    cqt_hop_lengths: tuple[int, ...] = (512, 256, 256)
    cqt_octaves: int = 9
    cqt_f_min: float = 32.70
    cqt_sample_rate: int = 44100
    dtype: Dtype = jnp.float32
    remat: bool = False

    def setup(self):
        parts = {"in_channels": self.in_channels, "dtype": self.dtype}
        self.msstft = MultiScaleSTFTDiscriminator(self.stft_filters, n_ffts=self.n_ffts, remat=self.remat, **parts)
        if self.use_msd:
            self.msd = MultiScaleDiscriminator(self.msd_scales, **parts)
        if self.use_mpd:
            self.mpd = MultiPeriodDiscriminator(self.mpd_periods, channels=self.mpd_channels, **parts)
        if self.use_mel_stft:
            self.mel_stft = MultiScaleMelSTFTDiscriminator(
                self.mel_stft_filters,
                n_ffts=self.mel_stft_n_ffts,
                n_mels=self.mel_stft_n_mels,
                sample_rate=self.mel_stft_sample_rate,
                f_min=self.mel_stft_f_min,
                f_max=self.mel_stft_f_max,
                remat=self.remat,
                **parts,
            )
        if self.use_cqt:
            self.cqt = MultiScaleSubBandCQTDiscriminator(
                self.cqt_filters,
                bins_per_octave=self.cqt_bins_per_octave,
                hop_lengths=self.cqt_hop_lengths,
                octaves=self.cqt_octaves,
                f_min=self.cqt_f_min,
                sample_rate=self.cqt_sample_rate,
                remat=self.remat,
                **parts,
            )

    def discriminate(self, audio, known_maps=None) -> Output:
        parts = ["msstft"] + [name for name in ("msd", "mpd", "mel_stft", "cqt") if getattr(self, f"use_{name}")]
        logits, feature_maps = [], []
        for part in parts:
            known = known_maps and known_maps[len(feature_maps) :]
            part_logits, part_maps = getattr(self, part).discriminate(in_turn(audio, logits, known), known)
            logits += part_logits
            feature_maps += part_maps
        return logits, feature_maps
