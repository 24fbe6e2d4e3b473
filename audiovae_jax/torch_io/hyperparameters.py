"""Hyperparameters of the PyTorch system's runs as config keys."""

import math

from audiovae_jax.torch_io.files.unpickle import Placeholder

# The torch system's hyperparameters by section ("" is the top level), with the config keys that they map to.
_ADVERSARIAL = {
    "adversarial_weight": "adversarial.adversarial_weight",
    "feature_matching_weight": "adversarial.feature_matching_weight",
}
_KL = {"kl_weight": "kl.weight", "kl_warmup_steps": "kl.warmup_steps", "free_bits": "kl.free_bits"}
_SETTINGS = {
    "": {
        **_ADVERSARIAL,
        **_KL,
        "adversarial_warmup_steps": "adversarial.warmup_steps",
        "generator_update_every": "generator_update_every",
        "discriminator_update_every": "discriminator_update_every",
        "sample_rate": "data.sample_rate",
    },
    "loss_calculator": _KL,
    "loss_fn": _KL,
    "kl": {**_KL, "weight": "kl.weight", "warmup_steps": "kl.warmup_steps"},
    "adversarial": {**_ADVERSARIAL, "warmup_steps": "adversarial.warmup_steps"},
    "adversarial_loss_calculator": {**_ADVERSARIAL, "warmup_steps": "adversarial.warmup_steps"},
}
_GROUP_SETTINGS = ("eps", "weight_decay")


def settings(hyperparameters):
    """Config keys of the hyperparameters that we know; others are ignored."""
    found, values = {}, entries(hyperparameters)
    for section, names in _SETTINGS.items():
        given = entries(values.get(section)) if section else values
        for name, key in names.items():
            if _is_rate(given.get(name)):
                found[key] = given[name]
    return found


def rates(hyperparameters):
    """Optimizer settings from hyperparameters; an optimizer's state takes precedence."""
    values = entries(hyperparameters)
    found = {}
    for section, name in (("optimizer", "lr"), ("discriminator_optimizer", "discriminator_lr")):
        if _is_rate(values.get(name)) and values[name] > 0:
            found[f"{section}.learning_rate"] = float(values[name])
    group = entries(values.get("optimizer"))
    if group:
        found |= _group_settings("optimizer", group)
        if _is_rate(group.get("lr")) and group["lr"] > 0:
            found["optimizer.learning_rate"] = float(group["lr"])
    return found


def entries(value):
    """Names and values of a dict, or of the object that a placeholder stands for."""
    if isinstance(value, Placeholder):
        state = value.state
        if isinstance(state, tuple):  # functools.partial: function, args, keywords, attributes
            state = next((part for part in state if isinstance(part, dict) and part), {})
        value = {**value.entries, **state} if isinstance(state, dict) else value.entries
    return value if isinstance(value, dict) else {}


def _group_settings(section, group):
    found = {f"{section}.{name}": float(group[name]) for name in _GROUP_SETTINGS if _is_rate(group.get(name))}
    betas = group.get("betas")
    if isinstance(betas, (tuple, list)) and len(betas) == 2 and all(map(_is_rate, betas)):
        found |= {f"{section}.b1": float(betas[0]), f"{section}.b2": float(betas[1])}
    return found


def optimizer_settings(section, optimizer, scheduler, step, notes):
    """Config keys from the state of an optimizer and its schedule at batch `step`."""
    groups = optimizer.get("param_groups") if isinstance(optimizer, dict) else None
    if not isinstance(groups, list) or not groups or not isinstance(groups[0], dict):
        return {}
    group = groups[0]
    found = _group_settings(section, group)
    rates = scheduler.get("base_lrs")
    rate = rates[0] if isinstance(rates, list) and rates else group.get("initial_lr", group.get("lr"))
    if _is_rate(rate) and rate > 0:
        found[f"{section}.learning_rate"] = float(rate)
    if not scheduler:
        return found
    length, counted = scheduler.get("T_max"), scheduler.get("last_epoch")
    if not isinstance(length, int) or not _is_rate(scheduler.get("eta_min")):
        notes.append(f"the schedule of its {section} is not a cosine; the config's schedule is used")
        return found
    found[f"{section}.final_learning_rate"] = float(scheduler["eta_min"])
    if section != "optimizer":
        return found
    if not isinstance(counted, int) or abs(counted - step) > 1:
        notes.append(f"its schedule is at {counted} at batch {step}, perhaps in epochs; config.num_steps is kept")
    elif length <= step:
        notes.append(
            f"its schedule of {length} steps has ended; config.num_steps is kept, and the learning rate follows "
            "the config's cosine over these steps"
        )
    else:
        found["num_steps"] = length
    return found


def _is_rate(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
