"""The command `benchmark`: from a config to a report."""

import json
import math
from pathlib import Path

import ml_collections

from audiovae_jax.config.resolve import did_you_mean
from audiovae_jax.errors import ConfigError
from audiovae_jax.performance.benchmark import codec, data, fresh, learning, peer, step
from audiovae_jax.persistence import saved_model
from audiovae_jax.storage.atomic import replacing, require_writable

SUBCOMMANDS = ("step", "codec", "data", "compile", "memory", "learning")


def set_keys(config: ml_collections.ConfigDict, *, batch_size: int | None, crop: int | None, adversarial: bool | None):
    """Set the config keys that have their own flags; None keeps the config's value."""
    if batch_size is not None:
        config.batch_size = batch_size
    if crop is not None:
        config.data.crop_length = crop
    if adversarial is not None:
        config.use_adversarial = adversarial


def run(
    subcommand: str,
    config: ml_collections.ConfigDict,
    *,
    against: list[str],
    repeats: int,
    warmup: int,
    profiled: bool,
    seconds: float,
    json_path: str | None,
    signals: int = 1,
    model: str | None = None,
    picture: str | None = None,
) -> dict:
    """Run a benchmark, and optionally write its report as JSON.

    Args:
      subcommand: one of `SUBCOMMANDS`.
      config: of the run to measure.
      against: names of systems to compare with.
      repeats: measured rounds.
      warmup: rounds before them.
      profiled: whether `step` reports the time of its parts.
      seconds: length of each signal of `codec`.
      json_path: file to write the report to, or None.
      signals: number of signals in a batch of `codec`.
      model: a trained model for `codec`, any path that `load_model` accepts. `config` is changed to match.
      picture: file for the curves of `learning`, or None.

    Raises:
      ConfigError: the subcommand or system is unknown, or a value is invalid.
    """
    if subcommand not in SUBCOMMANDS:
        raise ConfigError(
            f"there is no benchmark {subcommand!r}{did_you_mean(subcommand, SUBCOMMANDS)}; "
            f"choose from {', '.join(SUBCOMMANDS)}"
        )
    variables = None
    if model is not None:
        if subcommand != "codec":
            raise ConfigError(f"benchmark {subcommand} builds its model from --config; leave {model} out")
        loaded = saved_model.open_model(model)
        codec.follow(config, loaded.model, loaded.sample_rate)
        variables = loaded.variables
    if against and subcommand == "compile":
        raise ConfigError("compile cannot be compared with other systems; leave --against out")
    if subcommand == "data" and set(against) - {data.WHOLE}:
        raise ConfigError(f"data can only be compared with --against={data.WHOLE}, which decodes whole files")
    for system in [] if subcommand == "data" else against:
        peer.check(system, subcommand if subcommand in ("codec", "learning") else "step", config)
    if not math.isfinite(seconds):
        raise ConfigError(f"--seconds={seconds} must be a number of seconds")
    if json_path is not None:
        _require_writable("--json", json_path)
    if picture is not None:
        _require_writable("--picture", picture)
        if Path(picture).suffix.lower() not in learning.PICTURES:
            raise ConfigError(f"--picture={picture} must end in {' or '.join(learning.PICTURES)}")
    if subcommand not in ("compile", "memory"):  # they check in their own process: some devices serve only one
        peer.check_devices(config, [] if subcommand == "data" else against)
    if subcommand == "step":
        report = step.run(config, against=against, repeats=repeats, warmup=warmup, profiled=profiled)
    elif subcommand == "codec":
        report = codec.run(
            config, against=against, repeats=repeats, warmup=warmup, seconds=seconds, signals=signals,
            variables=variables,
        )  # fmt: skip
        if model is not None:
            report["what"] += f", {model}"
    elif subcommand == "data":
        report = data.run(config, against=against, repeats=repeats, warmup=warmup)
    elif subcommand == "learning":
        report = learning.run(config, against=against)
    elif subcommand == "compile":
        report = fresh.first_step(config)
    else:
        report = fresh.memory(config, against=against, repeats=repeats)
    if json_path is not None:
        with replacing(Path(json_path)) as path:
            path.write_text(json.dumps(report, indent=2) + "\n")
    if picture is not None:
        learning.draw(report, Path(picture))
    return report


def _require_writable(flag, path):
    if not path or Path(path).is_dir():
        raise ConfigError(f"{flag}={path} must name a file")
    folder = Path(path).absolute().parent
    if not folder.is_dir():
        raise ConfigError(f"{flag}={path}: there is no folder {folder}; create it first")
    try:
        require_writable(path)
    except OSError as error:
        raise ConfigError(f"{flag}={path}: cannot write to {folder} ({error.strerror})") from None


def lines(report: dict) -> list[str]:
    """Format a report as lines of text."""
    machine = report["machine"]
    shown = [
        f"{report['benchmark']}: {report['what']}",
        f"on {machine['device']}, Python {machine['python']}, jax {machine['jax']}, {machine['date']}",
    ]
    if "ceilings" in report:
        ceilings = report["ceilings"]
        shown.append(
            f"ceilings: {ceilings['flops'] / 1e9:.0f} GFLOP/s ({ceilings['dtype']} matrix product), "
            f"{ceilings['bytes'] / 1e9:.1f} GB/s (copy)"
        )
    for name, value in report.items():
        if name in ("machine", "ceilings", "profile", "ratios", "curves") or not isinstance(value, dict):
            continue
        shown += [f"{name}: {text}" for text in _entry(value)]
    if "curves" in report:
        shown += learning.table(report["curves"])
    for name, ratio in report.get("ratios", {}).items():
        shown.append(f"ours / {name}: {ratio:.3f}")
    if not report.get("profile", [None]):
        shown.append("  XLA's profiler recorded no operation")
    for entry in report.get("profile", []):
        if entry["share"] >= 0.005:  # smaller shares are noise
            shown.append(f"  {100 * entry['share']:5.1f} %  {entry['direction']:8}  {entry['part']}")
    return shown


def _entry(value):
    nested = {key: inner for key, inner in value.items() if isinstance(inner, dict) and key != "ratios"}
    if nested:
        yield from (f"{key}: {text}" for key, inner in nested.items() for text in _entry(inner))
        yield from (f"ours / {name}: {ratio:.3f}" for name, ratio in value.get("ratios", {}).items())
        return
    yield ", ".join(f"{key.replace('_', ' ')} {_number(key, number)}" for key, number in value.items())


def _number(key, value):
    if not isinstance(value, float | int) or isinstance(value, bool):
        return str(value)
    if "bytes" in key and "share" not in key:
        return f"{value / 1e9:.3g} GB" + ("/s" if "per_second" in key else "")
    if key.startswith("flops"):
        return f"{value / 1e9:.4g} GFLOP" + ("/s" if "per_second" in key else "")
    return f"{value:.4g}" if isinstance(value, float) else str(value)
