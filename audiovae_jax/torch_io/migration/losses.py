"""Convert the PyTorch system's loss classes to our loss functions."""

from typing import Any

from audiovae_jax.torch_io.migration.findings import Findings, Section
from audiovae_jax.training.step import RESERVED_METRICS

# Each class's function in `audiovae_jax.losses`, and its arguments with their defaults.
_STFT = {
    "fft_sizes": (1024, 2048, 512), "hop_sizes": (120, 240, 50), "win_lengths": (600, 1200, 240), "w_sc": 1.0,
    "w_log_mag": 1.0, "w_lin_mag": 0.0, "perceptual_weighting": False,
}  # fmt: skip
_MEL = {"fft_sizes": (512, 1024, 2048), "hop_sizes": None, "win_lengths": None, "n_mels": (64, 128, 256)}
_CLASSES = {
    "MultiResolutionSTFTLoss": ("multi_resolution_stft", _STFT),
    "SumAndDifferenceSTFTLoss": ("sum_and_difference_stft", {**_STFT, "w_sum": 1.0, "w_diff": 1.0}),
    "MidSideSTFTLoss": ("mid_side_stft", _STFT),
    "LRMultiResolutionSTFTLoss": ("multi_resolution_stft", _STFT),
    "MultiScaleMelSpectrogramLoss": ("multi_scale_mel", _MEL),
    "MultiScaleMelLoss": ("multi_scale_mel", _MEL),
    "WaveformLoss": ("waveform_l1", {}),
    "SISDRLoss": ("si_sdr", {}),
    "SDSDRLoss": ("sd_sdr", {}),
    "LogSpectralDistanceLoss": ("log_spectral_distance", {"n_fft": 1024, "hop_length": 256}),
}
# A loss may be identified by its `type` instead of a class.
_TYPES = {
    "multi_resolution_stft": "MultiResolutionSTFTLoss", "sum_and_difference_stft": "SumAndDifferenceSTFTLoss",
    "lr_multi_resolution_stft": "LRMultiResolutionSTFTLoss", "multi_scale_mel": "MultiScaleMelLoss",
    "multi_scale_mel_spectrogram": "MultiScaleMelSpectrogramLoss", "waveform": "WaveformLoss",
    "log_spectral_distance": "LogSpectralDistanceLoss",
}  # fmt: skip
# Options that have no effect at these values. Other values had an effect.
_WITHOUT_EFFECT = {
    "window": "hann_window", "w_phs": 0, "scale": None, "n_bins": None, "scale_invariance": False, "output": "loss",
    "reduction": "mean", "zero_mean": True, "w_left": 1, "w_right": 1, "norm": "slaney",
}  # fmt: skip
_STEREO_FFTS = (2048, 1024, 512, 256)  # of the losses enabled by flags such as `use_sum_and_difference`
_FLAGS = {
    "use_sum_and_difference": ("sum_and_difference_loss", "SumAndDifferenceSTFTLoss"),
    "use_lr_multiresolution": ("lr_multiresolution_loss", "LRMultiResolutionSTFTLoss"),
}
_PORT = "write it as a function of prediction and target, and give its dotted path (config/README.md)"


def take_losses(section: Section, found: Findings):
    """Add the reconstruction losses of a `VAELossCalculator` to `found.losses`."""
    weights = section.whatever("loss_weights", {})
    given: dict[str, dict[str, Any]] = {}
    for flag, (name, cls) in _FLAGS.items():
        configured = section.whatever(name)
        if section.flag(flag, False):
            given[name] = configured or {"_target_": cls, "fft_sizes": list(_STEREO_FFTS)}
    given |= dict(section.sections())
    given |= given.pop("additional_losses", {})
    for name, value in given.items():
        if isinstance(value, dict):
            _take_loss(name, value, section.key(name), weights.get(name), found)
        elif value is not None:
            found.dropped.append((section.key(name), value, _PORT))
    if found.losses == {}:
        found.losses = None
        found.changed.append((section.key("*"), "no loss could be converted, so those of configs/base.py are used"))


def _take_loss(name, values, path, weight, found):
    values = {**values, "_target_": _TYPES.get(values.get("type"), values.get("_target_"))}
    section = Section(values, path, found)
    section.ignore("type", "name", "eps")
    cls = section.target.rpartition(".")[2]
    found.losses = found.losses or {}
    if cls not in _CLASSES:
        found.dropped.append((path, section.target or values, f"it is a torch class: {_PORT}"))
        return
    function, defaults = _CLASSES[cls]
    made: dict[str, Any] = {"_target_": f"audiovae_jax.losses.{function}"}
    made["weight"] = section.number("weight", 1.0) if weight is None else weight
    section.ignore("weight")
    if made["weight"] != 1:
        found.changed.append((f"{path}.weight", "the weight of a loss was ignored, and is used now"))
    if "fft_sizes" in defaults:
        defaults = {**defaults, "sample_rate": None}
    for option, default in defaults.items():
        if option == "sample_rate":
            rate = section.whole(option)
            if rate is not None:
                found.sample_rates[f"{path}.{option}"] = rate
        elif isinstance(default, bool):
            made[option] = section.flag(option, default)
        elif isinstance(default, tuple) or default is None:
            made[option] = section.numbers(option, default)
        else:
            made[option] = section.number(option, default)
    _simplify(made)
    for option, value in _WITHOUT_EFFECT.items():
        if section.whatever(option, value) != value:
            found.dropped.append((f"{path}.{option}", values[option], "the loss has no such option here"))
    if function == "multi_scale_mel":
        made |= {"w_sc": section.number("w_sc", 1.0), "w_log_mag": section.number("w_log_mag", 1.0)}
        found.changed.append((path, "its spectral convergence was one ratio over the whole batch; it is one per item "
                                    "now (convergence='batch' gives the old value)"))  # fmt: skip
    section.end(lambda option: "the loss has no such option here")
    found.losses[_name(name, found.losses)] = made


def _simplify(made):
    """Replace hops and windows by None if they are redundant.

    They are if they equal the defaults, or if their number differs from the number of FFTs.
    """
    if "win_lengths" not in made:
        return
    sizes = made["fft_sizes"]
    if made["hop_sizes"] == tuple(size // 4 for size in sizes) or len(made["hop_sizes"] or sizes) != len(sizes):
        made["hop_sizes"] = None
    if made["win_lengths"] == sizes or len(made["win_lengths"] or sizes) != len(sizes):
        made["win_lengths"] = None


def _name(old, taken):
    name = old.removesuffix("_loss") or old
    return old if name in RESERVED_METRICS or name in taken else name
