"""Published tables: their settings, rows, and differences from our metrics."""

import dataclasses

from audiovae_jax.evaluation import metrics
from audiovae_jax.evaluation.spectral import Distance


@dataclasses.dataclass(frozen=True)
class Preset:
    """A published table, and the settings that reproduce its metrics.

    Attributes:
      source: of the table and its definitions.
      sample_rate: of measuring, in Hz.
      columns: the table's names of our columns, by our names.
      distances: spectral distances to compute.
      audio: the audio that the published rows were measured on.
      rows: published numbers, by system and our column name.
      differs: differences between the table's metrics and ours.
    """

    source: str
    sample_rate: int
    columns: dict[str, str]
    distances: tuple[Distance, ...]
    audio: str
    rows: dict[str, dict[str, float]]
    differs: tuple[str, ...]


def _audiotools(stft, mel, si_sdr):
    return {"audiotools_mel": mel, "audiotools_stft": stft, "si_sdr_db": si_sdr}


def _ear(si_sdr, stft, mel):
    return {"si_sdr_db": si_sdr, "ear_stft": stft, "ear_mel": mel}


_OTHER_AUDIO = "the published rows are of other audio, unless yours is the same; files differ more than systems"
_SI_SDR = "SI-SDR: theirs joins a file's channels to one signal, ours is the mean over channels; equal for mono"
_RESAMPLER = "files of another rate are resampled by libsoxr here, but by other filters there"

PRESETS: dict[str, Preset] = {
    "dac": Preset(
        source="Kumar et al., 2023 (DAC); scripts/evaluate.py of descript-audio-codec with audiotools' losses",
        sample_rate=44100,
        columns={"audiotools_mel": "mel", "audiotools_stft": "STFT", "si_sdr_db": "SI-SDR", "visqol": "ViSQOL"},
        distances=metrics.DISTANCES,
        audio="DAC's own test set of speech, music and environmental sound",
        rows={"DAC, 8 kbit/s": _audiotools(1.60, 0.93, 10.75)},
        differs=(
            _OTHER_AUDIO,
            _SI_SDR,
            "ViSQOL: their script swaps reference and estimate, which is corrected here. It is measured only with "
            "--visqol",
            "their script also measures at 22,050 Hz, which is not done here",
            _RESAMPLER,
        ),
    ),
    "ear": Preset(
        source="EAR_VAE, eval/eval_compare_matrix.py, with auraloss 0.4; rows of Song Describer, 546 tracks",
        sample_rate=44100,
        columns={
            "si_sdr_db": "SI-SDR",
            "ear_stft": "STFT distance",
            "ear_mel": "mel distance",
            "phase_coherence": "per-channel coherence",
            "interchannel_phase_coherence": "inter-channel coherence",
        },
        distances=(*metrics.DISTANCES, *metrics.EAR_DISTANCES),
        audio="Song Describer, 546 tracks; it is not documented whether that script made these rows",
        rows={
            "Stable Audio Open 1.0": _ear(6.7, 1.016, 0.612),
            "SAME-L": _ear(12.5, 0.986, 0.539),
            "εar-VAE": _ear(12.4, 0.880, 0.509),
            "εar-VAE2": _ear(11.3, 0.870, 0.461),
        },
        differs=(
            _OTHER_AUDIO,
            "loudness and true peak: theirs are ffmpeg's ebur128 of each side; ours are differences, by BS.1770-5",
            _RESAMPLER,
        ),
    ),
    "kvae": Preset(
        source="KVAE-Audio, scripts/eval.py, with audiotools' losses at 48 kHz; rows of MUSDB18-HQ",
        sample_rate=48000,
        columns={"audiotools_mel": "mel", "audiotools_stft": "STFT", "si_sdr_db": "SI-SDR"},
        distances=metrics.DISTANCES,
        audio="MUSDB18-HQ",
        rows={
            "DACVAE": _audiotools(1.762, 0.519, 9.69),
            "SAME-L": _audiotools(1.786, 0.668, 10.28),
            "KVAE-Audio": _audiotools(1.725, 0.516, 10.39),
        },
        differs=(
            _OTHER_AUDIO,
            _SI_SDR,
            "KVAE-Audio and DACVAE are mono; it is not documented how they processed MUSDB18-HQ's stereo",
            "the arguments of their losses are not documented; audiotools' defaults are used",
            "SDR and SNR of their script are not in this table, since their arguments are not documented",
            _RESAMPLER,
        ),
    ),
}
