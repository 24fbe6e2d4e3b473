"""Metrics of a reconstruction, computed in one pass over both signals."""

import concurrent.futures
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from audiovae_jax.data.audio import loudness
from audiovae_jax.data.audio.stream import AudioStream
from audiovae_jax.data.sets import bandwidth
from audiovae_jax.errors import DataError
from audiovae_jax.evaluation import spectral, stereo
from audiovae_jax.evaluation.spectral import Distance
from audiovae_jax.evaluation.waveform import BssSdr, WaveformErrors

_BLOCK = 1 << 16  # samples per block
_QUIET = 1e-6  # mean power below which a second is too quiet to count as the worst


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the table.

    Attributes:
      label: display name, with the unit.
      better: 1 if higher is better, -1 if lower is better, 0 for neither.
      definition: the definition, and its source.
    """

    label: str
    better: int
    definition: str


COLUMNS: dict[str, Column] = {
    "si_sdr_db": Column("SI-SDR (dB)", 1, "Le Roux et al., 2019; zero-mean, per channel, then the mean over channels"),
    "sdr_db": Column("SDR, BSS Eval (dB)", 1, "Vincent et al., 2006: allows a filter of 512 taps; per channel"),
    "snr_db": Column("SNR (dB)", 1, "10 log10 of signal over error, per channel, then the mean over channels"),
    "mse": Column("MSE", -1, "mean squared error of samples; full scale is 1"),
    "l1": Column("L1", -1, "mean absolute error of samples"),
    "auraloss_stft": Column(
        "STFT, auraloss", -1, "auraloss 0.4 MultiResolutionSTFTLoss() with its defaults: convergence + log magnitude"
    ),
    "auraloss_mel": Column(
        "mel, auraloss", -1, "auraloss 0.4 MelSTFTLoss(sample_rate) with its defaults: FFT 1024, 128 bands"
    ),
    "audiotools_stft": Column(
        "STFT, audiotools", -1, "audiotools 0.7 MultiScaleSTFTLoss() with its defaults, as in DAC's table"
    ),
    "audiotools_mel": Column(
        "mel, audiotools", -1, "audiotools 0.7 MelSpectrogramLoss() with its defaults, as in DAC's table"
    ),
    "log1p_stft": Column("STFT, log1p", -1, "mean |log(1+X) - log(1+Y)| of magnitudes, FFTs of 2048 and 512"),
    "log1p_mel": Column("mel, log1p", -1, "log1p STFT on 150 and 80 mel bands"),
    "log_spectral_db": Column(
        "log-spectral distance (dB)", -1, "Gray and Markel, 1976: RMS over bins, mean over frames; FFT 2048"
    ),
    "ear_stft": Column("STFT, EAR_VAE", -1, "auraloss, A-weighted, FFTs 4096 to 128 with hops of a quarter"),
    "ear_mel": Column("mel, EAR_VAE", -1, "auraloss, A-weighted, 64 bands, FFTs 4096 to 512 with hops of a quarter"),
    "phase_coherence": Column("phase coherence", 1, "per channel, by EAR_VAE's evaluation script"),
    "interchannel_phase_coherence": Column(
        "inter-channel phase coherence", 1, "between left and right, by EAR_VAE's evaluation script"
    ),
    "mid_snr_db": Column("mid SNR (dB)", 1, "SNR of (L+R)/2"),
    "side_snr_db": Column("side SNR (dB)", 1, "SNR of (L-R)/2"),
    "stereo_correlation": Column("stereo correlation of the original", 0, "Pearson's, of left and right"),
    "stereo_correlation_error": Column("stereo correlation, error", -1, "absolute difference of the two correlations"),
    "pan_error": Column("pan error", -1, "mean difference of bins' panning index (Avendano, 2003), by power; 0 to 2"),
    "loudness_lufs": Column("loudness of the original (LUFS)", 0, "integrated, ITU-R BS.1770-5"),
    "loudness_difference_lu": Column("loudness difference (LU)", 0, "reconstruction minus original"),
    "true_peak_dbtp": Column("true peak of the original (dBTP)", 0, "ITU-R BS.1770-5, annex 2"),
    "true_peak_difference_db": Column("true peak difference (dB)", 0, "reconstruction minus original"),
    "bandwidth_hz": Column("bandwidth of the original (Hz)", 0, "where four windows fall 90 dB below their peak"),
    "bandwidth_kept": Column("bandwidth kept", 0, "bandwidth of the reconstruction, divided by the original's"),
    "visqol": Column("ViSQOL, audio (MOS-LQO)", 1, "Chinen et al., 2020, by visqol-python: mono, 48 kHz; 1 to 5"),
    "fad": Column("FAD", -1, "Kilgour et al., 2019, on all files' embeddings by the given function"),
    "kad": Column("KAD", -1, "Chung et al., 2025, on the same embeddings; times 100, bandwidth from the originals"),
    "kl_nats_per_frame": Column(
        "KL (nats a frame)", 0, "of the posterior from the standard normal, summed over channels"
    ),
    "active_channels": Column("active latent channels", 0, "with a variance of the mean above 0.01 (Burda, 2016)"),
    "latent_mean_abs": Column("|mean| of latents", 0, "mean over channels of |mean|; 0 for calibrated latents"),
    "latent_std": Column("deviation of latents", 0, "mean over channels; 1 for calibrated latents"),
    "bits_per_second": Column(
        "bits a second", 0, "of a model, its latents' information: KL / ln 2 per second; of a codec, its file size"
    ),
    "realtime_factor": Column(
        "real-time factor", -1, "seconds to encode, decode and write a second of audio; faster than real time below 1"
    ),
}

_TWO = ((2048, 512, 2048), (512, 128, 512))
_EAR = tuple((n, n // 4, n) for n in (4096, 2048, 1024, 512, 256, 128))
DISTANCES: tuple[Distance, ...] = (
    Distance("auraloss_stft", spectral.AURALOSS, ((1024, 120, 600), (2048, 240, 1200), (512, 50, 240))),
    Distance("auraloss_mel", spectral.AURALOSS, ((1024, 256, 1024),), n_mels=(128,)),
    Distance("audiotools_stft", spectral.AUDIOTOOLS, _TWO),
    Distance("audiotools_mel", spectral.AUDIOTOOLS, _TWO, n_mels=(150, 80)),
    Distance("log1p_stft", spectral.LOG1P, _TWO),
    Distance("log1p_mel", spectral.LOG1P, _TWO, n_mels=(150, 80)),
    Distance("log_spectral_db", spectral.LOG_SPECTRAL, _TWO[:1]),
)
EAR_DISTANCES: tuple[Distance, ...] = (
    Distance("ear_stft", spectral.AURALOSS, _EAR, a_weighted=True),
    Distance("ear_mel", spectral.AURALOSS, _EAR[:4], n_mels=(64,) * 4, a_weighted=True),
)


def measure(
    reference: AudioStream,
    estimate: AudioStream,
    *,
    distances: Sequence[Distance] = DISTANCES,
    pool: concurrent.futures.Executor,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[dict[str, float | None], float]:
    """Compute all metrics of two signals, in one pass and bounded memory.

    Sums, transforms and filters keep their state across blocks, so that the metrics are those of the whole signals.
    Only `bandwidth_hz` is measured in four windows of 8,192 samples.

    Args:
      reference, estimate: streams of the same length, sample rate and number of channels.
      distances: spectral distances to compute.
      pool: threads to compute in.
      progress: called with the fraction done.

    Returns:
      `(columns, worst)`. `columns` has metrics by name. A metric is None if it is undefined, for example for silence,
      mono or short signals. Ratios are infinite if the estimate is exact. `worst` is the second with the largest
      error relative to the signal.

    Raises:
      DataError: the signals cannot be read, or do not match.
    """
    for name in ("sample_rate", "length", "channels"):
        if getattr(reference, name) != getattr(estimate, name):
            raise DataError(
                f"{reference.name}: the reconstruction's {name} is {getattr(estimate, name)}, "
                f"not {getattr(reference, name)}"
            )
    rate, channels = reference.sample_rate, reference.channels
    is_stereo = channels == 2
    errors, sdr, field = WaveformErrors(channels), BssSdr(channels), stereo.StereoField() if is_stereo else None
    coherence = [stereo.PhaseCoherence() for _ in stereo.PHASE_RESOLUTIONS] if channels <= 2 else []
    pan = stereo.PanError()
    measures = list(zip(stereo.PHASE_RESOLUTIONS, coherence, strict=False))
    measures += [(stereo.PAN_RESOLUTION, pan)] if is_stereo else []
    analysis = spectral.Analysis(distances, measures, rate, pool)
    sides = [_Side(reference), _Side(reference)]
    seconds = _Seconds(rate)
    done = 0
    for y, x in pairs(reference, estimate):
        exact = y.astype(np.float64), x.astype(np.float64)
        waiting = [pool.submit(part.add, *exact) for part in (errors, sdr, seconds)]
        waiting += [pool.submit(field.add, *exact)] if is_stereo else []
        waiting += [pool.submit(side.add, block) for side, block in zip(sides, exact, strict=True)]
        analysis.add(y, x)
        for future in waiting:
            future.result()
        done += len(y)
        progress(done / reference.length)
    spectra = analysis.end()
    row = {
        "si_sdr_db": errors.si_sdr(),
        "sdr_db": sdr.sdr(),
        "snr_db": errors.snr(),
        "mse": errors.mse(),
        "l1": errors.l1(),
        **spectra,
        "phase_coherence": _mean([part.channels() for part in coherence]),
        "interchannel_phase_coherence": _mean([part.between() for part in coherence]),
        **(field.result() if is_stereo else {}),
        "pan_error": pan.result(),
        **_compared(*sides),
    }
    return {name: row[name] for name in COLUMNS if name in row}, seconds.worst()


class _Side:
    """Metrics of a single signal."""

    def __init__(self, signal: AudioStream):
        self._rate = signal.sample_rate
        self._meter, self._peak = loudness.Meter(self._rate, signal.channels), loudness.TruePeak(signal.channels)
        self._places = bandwidth.places(signal.length)
        self._windows = [[] for _ in self._places]
        self._done = 0

    def add(self, block):
        self._meter.add(block)
        self._peak.add(block)
        for (start, count), window in zip(self._places, self._windows, strict=True):
            part = block[max(0, start - self._done) : max(0, start + count - self._done)]
            if len(part):
                window.append(part)
        self._done += len(block)

    def result(self):
        band = bandwidth.end([np.concatenate(window) for window in self._windows], self._rate)
        return self._meter.integrated(), self._peak.decibels(), band


def _compared(reference, estimate):
    (y_loudness, y_peak, y_band), (x_loudness, x_peak, x_band) = reference.result(), estimate.result()
    return {
        "loudness_lufs": y_loudness,
        "loudness_difference_lu": None if None in (y_loudness, x_loudness) else x_loudness - y_loudness,
        "true_peak_dbtp": y_peak,
        "true_peak_difference_db": None if None in (y_peak, x_peak) else x_peak - y_peak,
        "bandwidth_hz": y_band or None,
        "bandwidth_kept": x_band / y_band if y_band else None,
    }


class _Seconds:
    """Finds the second with the largest error relative to the signal."""

    def __init__(self, rate):
        self._rate, self._done = rate, 0
        self._powers = np.zeros((2, 0))

    def add(self, reference, estimate):
        count = -(-(self._done + len(reference)) // self._rate)
        self._powers = np.pad(self._powers, ((0, 0), (0, count - self._powers.shape[1])))
        place = (self._done + np.arange(len(reference))) // self._rate
        for i, signal in enumerate((reference, estimate - reference)):
            self._powers[i] += np.bincount(place, np.square(signal).mean(axis=1), count)
        self._done += len(reference)

    def worst(self):
        signal, error = self._powers / self._rate
        heard = signal > _QUIET
        return float(np.argmax(np.where(heard, error / np.maximum(signal, _QUIET), -1.0)))


def pairs(reference: AudioStream, estimate: AudioStream) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Iterate over both streams in blocks of equal length.

    Raises:
      DataError: a stream ends early.
    """
    held = [np.zeros((0, reference.channels), np.float32)] * 2
    sources = [reference.blocks(), estimate.blocks()]
    done = 0
    while done < reference.length:
        size = min(_BLOCK, reference.length - done)
        for i, source in enumerate(sources):
            parts, have = [held[i]], len(held[i])
            while have < size:
                part = next(source, None)
                if part is None:
                    raise DataError(f"{reference.name} ends after {done + have} of {reference.length} samples")
                parts.append(part)
                have += len(part)
            held[i] = np.concatenate(parts) if len(parts) > 1 else parts[0]
        yield held[0][:size], held[1][:size]
        held = [part[size:] for part in held]
        done += size


def _mean(values):
    known = [value for value in values if value is not None and math.isfinite(value)]
    return float(np.mean(known)) if known else None
