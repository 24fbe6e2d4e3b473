"""HTML of metrics: three main ones, then groups, each with its better direction."""

import math
from collections.abc import Mapping

from audiovae_jax.evaluation.metrics import COLUMNS
from audiovae_jax.evaluation.report import number
from audiovae_jax.html.document import escaped

MAIN = ("si_sdr_db", "audiotools_mel", "auraloss_stft")
GROUPS: dict[str, tuple[str, ...]] = {
    "Fidelity": ("si_sdr_db", "sdr_db", "snr_db", "mse", "l1", "phase_coherence"),
    "Spectrum": ("auraloss_stft", "auraloss_mel", "audiotools_stft", "audiotools_mel", "log1p_stft", "log1p_mel",
                 "log_spectral_db", "bandwidth_hz", "bandwidth_kept"),
    "Stereo": ("mid_snr_db", "side_snr_db", "interchannel_phase_coherence", "stereo_correlation",
               "stereo_correlation_error", "pan_error"),
    "Loudness": ("loudness_lufs", "loudness_difference_lu", "true_peak_dbtp", "true_peak_difference_db"),
    "Latents": ("kl_nats_per_frame", "bits_per_second", "active_channels", "latent_mean_abs", "latent_std"),
}  # fmt: skip
_BETTER = {1: "higher is better", -1: "lower is better", 0: ""}
_ARROWS = {1: "↑", -1: "↓", 0: ""}


def scorecard(columns: Mapping[str, float | None]) -> str:
    """Return the HTML of all metrics that have a value.

    The metrics in `MAIN` come first, then `GROUPS`, then the definitions.
    """
    known = {name: value for name, value in columns.items() if value is not None}
    main = "".join(_tile(name, known[name]) for name in MAIN if name in known)
    groups = {title: [name for name in names if name in known] for title, names in GROUPS.items()}
    cards = "".join(
        f"<section><h4>{title}</h4>{''.join(_line(name, known[name]) for name in names)}</section>"
        for title, names in groups.items()
        if names
    )
    definitions = "".join(
        f"<dt>{escaped(COLUMNS[name].label)}</dt><dd>{escaped(COLUMNS[name].definition)}</dd>"
        for names in groups.values()
        for name in names
    )
    return (
        f'<div class="scorecard"><div class="main">{main}</div><p class="note">↑ higher is better, ↓ lower is better; '
        f'without an arrow, neither.</p><div class="groups">{cards}</div>'
        f"<details><summary>Definitions of the metrics</summary><dl>{definitions}</dl></details></div>"
    )


def _tile(name, value):
    column = COLUMNS[name]
    return (
        f'<div title="{escaped(column.definition)}"><span>{escaped(column.label)}</span>'
        f"<strong>{_text(value)}</strong><span>{_ARROWS[column.better]} {_BETTER[column.better]}</span></div>"
    )


def _line(name, value):
    column = COLUMNS[name]
    arrow = f' <i title="{_BETTER[column.better]}">{_ARROWS[column.better]}</i>' if column.better else ""
    return (
        f'<div title="{escaped(column.definition)}"><span>{escaped(column.label)}{arrow}</span>'
        f"<span>{_text(value)}</span></div>"
    )


def _text(value):
    if not math.isfinite(value):
        return "∞" if value > 0 else "-∞"
    return f"{value:.0f}" if value and float(value).is_integer() else number(value)
