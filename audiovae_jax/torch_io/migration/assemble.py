"""Convert findings from an old config to the keys of a new one."""

import math
from typing import Any

import ml_collections

from audiovae_jax.config.configuration import flatten
from audiovae_jax.torch_io.migration.findings import Findings

_HALF = ("16", "16-mixed", "16-true", "fp16", "half")
_BFLOAT = ("bf16", "bf16-mixed", "bf16-true")
# Factors from one device's batch to the batch of an update, with Lightning's defaults.
_FACTORS = {"devices": "auto", "num_nodes": 1, "accumulate_grad_batches": 1}


def complete(found: Findings, reference: ml_collections.ConfigDict):
    """Add the settings that depend on several old keys to `found.settings`.

    Args:
      found: findings from all sections, modified in place.
      reference: the base config, for settings that the old config lacks.
    """
    base = flatten(reference)

    def setting(key):
        return found.settings.get(key, base[key])

    _one_rate(found)
    _one_channel_count(found)
    _counts(found, setting)
    _precision(found)
    _crop(found, setting)
    if setting("use_adversarial"):
        found.changed.append(
            ("model.use_adversarial", "feature matching had no gradient, but now reaches the generator; consider "
             "a lower weight")
        )  # fmt: skip
        if setting("adversarial.warmup_steps") < setting("kl.warmup_steps"):
            found.changed.append(
                ("kl_warmup_steps", "steps were counted twice a batch while the discriminator trained, so the warm-up "
                 "took fewer batches; config.kl.warmup_steps counts batches")
            )  # fmt: skip


def _one_rate(found):
    rates = found.sample_rates
    if not rates:
        return
    key = found.facts.get("data_rate")
    key = key if key in rates else next(iter(rates))
    found.settings["data.sample_rate"] = rates[key]
    _say_others(found, rates, key, "data, losses and discriminator share one sample rate")


def _one_channel_count(found):
    counts = found.channels
    if not counts:
        return
    key = next((key for key in counts if key.endswith(".channels")), next(iter(counts)))
    found.settings["data.channels"] = counts[key]
    _say_others(found, counts, key, "data, model and discriminator share one number of channels")


def _say_others(found, given, key, reason):
    for other, value in given.items():
        if value != given[key]:
            found.dropped.append((other, value, f"{reason}: {key}={given[key]}"))


def _counts(found, setting):
    """Convert epochs to steps."""
    facts = found.facts
    _batch_size(found)
    epoch = max(1, int(facts["epoch"][1]) // setting("batch_size")) if "epoch" in facts else None
    lengths = []
    if "max_steps" in facts:
        key, steps = facts["max_steps"]
        adversarial = setting("use_adversarial") and setting("adversarial.warmup_steps") < steps
        lengths.append(int(steps) // (2 if adversarial else 1))
        if adversarial:
            found.changed.append((key, f"a batch counted as two steps, one per network; now {lengths[0]} batches"))
    counts = (
        ("num_steps", facts.get("max_epochs")),
        ("validate_every", facts.get("check_val_every_n_epoch")),
        ("checkpoint_every", facts.get("checkpoint_epochs")),
        ("sample_every", facts.get("sample_epochs")),
    )
    for new, fact in counts:
        if fact is None:
            continue
        if epoch is None:
            found.dropped.append(
                (*fact, f"the length of an epoch is unknown; give train_samples=N, or set config.{new}")
            )
            continue
        found.changed.append(
            (fact[0], f"{fact[1]:g} epochs of {epoch} batches are config.{new}={int(fact[1] * epoch)}")
        )
        if new == "num_steps":
            lengths.append(int(fact[1] * epoch))
        else:
            found.settings[new] = max(1, int(fact[1] * epoch))
    if lengths:
        found.settings["num_steps"] = max(1, min(lengths))
    if "val_check_interval" in facts:
        key, interval = facts["val_check_interval"]
        if isinstance(interval, int):
            batches = _count(_factor(found, "accumulate_grad_batches")) or 1  # of an update
            found.settings["validate_every"] = max(1, interval // batches)
        elif epoch is not None:
            found.settings["validate_every"] = max(1, int(interval * epoch))
        else:
            reason = "the length of an epoch is unknown; give train_samples=N, or set config.validate_every"
            found.dropped.append((key, interval, reason))
    if "checkpoint_steps" in facts:
        found.settings["checkpoint_every"] = facts["checkpoint_steps"][1]
    if "samples" in facts:
        found.settings["data.num_samples"] = facts["samples"][1]


def _batch_size(found):
    """Set `config.batch_size`, items per update, from Lightning's items per device."""
    if "batch_size" not in found.facts:
        return
    key, size = found.facts["batch_size"]
    counts = {name: _count(_factor(found, name)) for name in _FACTORS}
    total = int(size) * math.prod(count or 1 for count in counts.values())
    found.settings |= {"batch_size": total, "accumulation_steps": counts["accumulate_grad_batches"] or 1}
    unknown = [name for name, count in counts.items() if count is None]
    if unknown:
        values = ", ".join(f"{name}={_factor(found, name)}" for name in unknown)
        remedy = " ".join(f"trainer.{name}=N" for name in unknown)
        found.changed.append((key, f"it counted the items of one device; {values} is not a number to multiply by; "
                                   f"give {remedy}"))  # fmt: skip
    if total != size:
        product = " * ".join([f"{size:g}", *(f"{name}={count}" for name, count in counts.items() if count)])
        found.changed.append((key, "it counted the items of one device; an update has "
                                   f"config.batch_size={total} ({product})"))  # fmt: skip


def _factor(found, name):
    return found.facts[name][1] if name in found.facts else _FACTORS[name]


def _count(value) -> int | None:
    """Return the count that Lightning reads from a value; None for e.g. `auto`.

    Counts are `4`, `"4"`, `[0, 1]` and `"0,1"`.
    """
    if isinstance(value, str):
        value = [part for part in value.split(",") if part.strip()] if "," in value else value.strip()
    if isinstance(value, list):
        return len(value) or None
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def _precision(found):
    if "precision" not in found.facts:
        return
    key, precision = found.facts["precision"]
    if precision in _HALF + _BFLOAT:
        found.settings |= {"model.dtype": "bfloat16", "discriminator.dtype": "bfloat16"}
        if precision in _HALF:
            found.changed.append((key, "bfloat16 instead of float16, for convolutions; the rest is float32"))
    elif not precision.startswith("32"):
        found.dropped.append(
            (key, precision, "parameters, losses and STFTs are float32; convolutions are float32 or bfloat16")
        )


def _crop(found, setting):
    if "crop_samples" in found.facts:
        key, samples = found.facts["crop_samples"]
    elif "crop_seconds" in found.facts:
        key, seconds = found.facts["crop_seconds"]
        samples = seconds * setting("data.sample_rate")
    else:
        return
    hop = math.prod(map(int, setting("model.strides"))) or 1
    crop = max(1, round(samples / hop)) * hop
    found.settings["data.crop_length"] = crop
    if crop != samples:
        found.changed.append((key, f"{samples:g} samples are not a multiple of the hop of {hop}, and were padded with "
                                   f"zeros inside the loss; crops are {crop} samples now"))  # fmt: skip


def statements(found: Findings, reference: ml_collections.ConfigDict) -> list[str]:
    """Return the lines of Python that turn the base config into the migrated one."""
    base, lines = flatten(reference), []
    for key, before in base.items():
        section = key.partition(".")[0]
        if section == "losses" or (section == "discriminator" and found.discriminator is not None):
            continue
        if key in found.settings and (value := _like(before, found.settings[key])) != before:
            lines.append(f"config.{key} = {_python(value)}")
    if found.discriminator is not None:
        lines.append(f"config.discriminator = {_section(_with_shared(found, found.discriminator))}")
    if found.losses is not None:
        lines += _losses(found.losses, reference.losses)
    return lines


def _losses(losses, reference):
    lines = [f"del config.losses.{name}" for name in reference if name not in losses]
    for name, made in losses.items():
        before = reference[name].to_dict() if name in reference else {}
        if made["_target_"] == before.get("_target_"):
            lines += [
                f"config.losses.{name}.{key} = {_python(value)}"
                for key, value in ((key, _like(before[key], value)) for key, value in made.items())
                if value != before[key]
            ]
        else:
            shared = {"sample_rate": _SAMPLE_RATE} if "fft_sizes" in made else {}
            lines.append(f"config.losses.{name} = {_section({**made, **shared})}")
    return lines


class _Code(str):
    """Python source whose repr is the source itself."""

    def __repr__(self):
        return str(self)


_SAMPLE_RATE = _Code('config.data.get_ref("sample_rate")')
_CHANNELS = _Code('config.data.get_ref("channels")')


def _with_shared(found, section):
    """Add the dtype and the arguments shared with the data to a section."""
    name, made = section["_target_"].rpartition(".")[2], dict(section)
    if name != "BandSplitDiscriminator":
        made["in_channels"] = _CHANNELS
    if name == "MultiScaleMelSTFTDiscriminator":
        made["sample_rate"] = _SAMPLE_RATE
    if "discriminator.dtype" in found.settings:
        made["dtype"] = found.settings["discriminator.dtype"]
    return made


def _section(values: dict[str, Any]) -> str:
    inner = ", ".join(f"{_python(key)}: {_python(value)}" for key, value in values.items())
    return f"ml_collections.ConfigDict({{{inner}}})"


def _python(value):
    """Return a value as source code in this project's style."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_python, value))}{',' * (len(value) == 1)})"
    text = repr(value)
    return f'"{text[1:-1]}"' if text.startswith("'") and '"' not in text else text


def _like(before, value):
    """Convert a number, or a list of numbers, to the type of the base config's value."""
    if isinstance(before, float) and isinstance(value, int):
        return float(value)
    if isinstance(before, int) and not isinstance(before, bool) and isinstance(value, float) and value == int(value):
        return int(value)
    if isinstance(value, (tuple, list)):
        return tuple(int(v) if isinstance(v, float) and v == int(v) else v for v in value)
    return value
