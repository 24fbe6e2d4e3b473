"""A training run of the PyTorch system, to be continued here: weights, moments, step and settings."""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from audiovae_jax.errors import CheckpointError
from audiovae_jax.state import TrainState, split_trainable
from audiovae_jax.step import Recipe
from audiovae_jax.torch_io import architecture, audio_vae, layout, reader, state_dict
from audiovae_jax.torch_io.discriminator import discriminator_tensors, read_discriminator
from audiovae_jax.torch_io.unpickle import Placeholder

PyTree = Any
# The torch system's hyperparameters, flat or in a section of their own, and the config keys they are here.
_SETTINGS = {
    "adversarial_weight": "adversarial.adversarial_weight",
    "feature_matching_weight": "adversarial.feature_matching_weight",
    "adversarial_warmup_steps": "adversarial.warmup_steps",
    "warmup_steps": "adversarial.warmup_steps",
    "generator_update_every": "generator_update_every",
    "discriminator_update_every": "discriminator_update_every",
    "sample_rate": "data.sample_rate",
    "kl_weight": "kl.weight",
    "kl_warmup_steps": "kl.warmup_steps",
    "free_bits": "kl.free_bits",
}
_SECTIONS = ("adversarial_loss_calculator", "adversarial", "loss_calculator", "loss_fn", "kl")
_GROUP_SETTINGS = {"eps": "eps", "weight_decay": "weight_decay"}


@dataclasses.dataclass
class Moments:
    """AdamW's state: `step` updates were made; the moments by torch's key, in torch's layout."""

    step: int
    exp_avg: dict[str, np.ndarray]
    exp_avg_sq: dict[str, np.ndarray]


@dataclasses.dataclass
class ImportedTraining:
    """A run of the PyTorch system.

    Attributes:
      audio_vae: the model.
      step: batches seen.
      moments: of the model's optimizer, if it has one.
      discriminator: the discriminator's tensors, if it has one.
      discriminator_moments: likewise.
      overrides: config keys and the values that the file shows.
      notes: what was inferred, assumed or left out.
    """

    audio_vae: audio_vae.ImportedAudioVAE
    step: int
    moments: Moments | None
    discriminator: dict[str, np.ndarray] | None
    discriminator_moments: Moments | None
    overrides: dict[str, Any]
    notes: list[str]

    def discriminator_arguments(self) -> dict[str, Any]:
        """The arguments of `EnCodecDiscriminator` that the file shows."""
        prefix = "discriminator."
        found = {key.removeprefix(prefix): value for key, value in self.overrides.items() if key.startswith(prefix)}
        rate = self.audio_vae.sample_rate
        return {**found, "mel_stft_sample_rate": rate} if rate else found


def read_training(
    path: str | Path, *, dilations: tuple[int, ...] | None = None, strict: bool = True
) -> ImportedTraining:
    """The run in a Lightning checkpoint, a `save_model` file, or, with nothing but weights, at its start.

    Args:
      path: the file.
      dilations, strict: see `audio_vae.import_audio_vae`.

    Raises:
      CheckpointError: the file cannot be read, or its parts do not fit each other.
    """
    checkpoint = reader.read_checkpoint(path)
    try:
        return _training(checkpoint, dilations, strict)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}"[:200]
        raise CheckpointError(f"{path}: its training state is not as the PyTorch system writes it ({what})") from error


def train_state(imported: ImportedTraining, recipe: Recipe, fresh: TrainState, notes: list[str]) -> TrainState:
    """`fresh` with all that the imported run has; `notes` gets what it has not.

    Args:
      imported: from `read_training`; the model must be that of `recipe`.
      recipe: what the step is given.
      fresh: an initial state.
      notes: gets a line per part.

    Raises:
      CheckpointError: the model or the discriminator is another than the recipe's.
    """
    model = imported.audio_vae
    for key in audio_vae.CONFIG_KEYS:
        theirs, ours = getattr(model.model, key), getattr(recipe.model, key)
        if theirs != ours:
            raise CheckpointError(f"its model has {key}={theirs}, config.model.{key} is {ours}; give both the same")
    parts = {
        "step": jnp.asarray(imported.step, jnp.int32),
        "params": model.variables["params"],
        "latent_statistics": model.variables["latent_statistics"],
    }
    trainable, _ = split_trainable(model.variables["params"], recipe.model.encoder_frozen)
    optimizers = {"opt_state": (fresh.opt_state, trainable, imported.moments)}
    if recipe.discriminator is not None and imported.discriminator is not None:
        parts["discriminator_params"] = params = read_discriminator(imported.discriminator, recipe.discriminator).params
        optimizers["discriminator_opt_state"] = (fresh.discriminator_opt_state, params, imported.discriminator_moments)
    elif recipe.discriminator is not None:
        notes.append("there is no discriminator in it; ours starts afresh")
    for name, (opt_state, params, moments) in optimizers.items():
        taken = None if moments is None else with_moments(opt_state, params, moments)
        if taken is not None:
            parts[name] = taken
        else:
            why = "there is none in it" if moments is None else "its moments are of folded weights"
            notes.append(f"{name} starts afresh: {why}")
    notes.append(f"taken over: step {imported.step}, {', '.join(name for name in parts if name != 'step')}")
    return fresh.replace(**parts)


def with_moments(opt_state: PyTree, params: PyTree, moments: Moments) -> PyTree | None:
    """An AdamW state over `params` with the moments of a torch file; None where they are of other parameters.

    Those of a folded weight are not the moments of its gain and direction.
    """
    shapes = jax.eval_shape(lambda: params)
    filled = [state_dict.fill(shapes, dict(tensors)) for tensors in (moments.exp_avg, moments.exp_avg_sq)]
    for one in filled:
        kept = ("latent_mean", "latent_std", "encoder.")  # trained there, or frozen here
        surplus = [key for key in one.problems["surplus"] if not key.startswith(kept)]
        if state_dict.explain({**one.problems, "surplus": surplus}) or any("folded" in line.note for line in one.lines):
            return None
    count = jnp.asarray(moments.step, jnp.int32)
    return optax.tree.set(opt_state, mu=filled[0].params, nu=filled[1].params, count=count)


def optimizer_state_dict(
    opt_state: PyTree, variables: Mapping[str, Any], *, learning_rate: float, settings: Mapping[str, float]
) -> dict:
    """The state dict of `torch.optim.AdamW` over all of the torch model's parameters.

    Args:
      opt_state: of `optimizer.adamw`.
      variables: the model's, which tell the parameters' order.
      learning_rate: the present one.
      settings: `b1`, `b2`, `eps`, `weight_decay`.
    """
    count = float(optax.tree.get(opt_state, "count"))
    moments = {}
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        for path, array in flax.traverse_util.flatten_dict(optax.tree.get(opt_state, ours)).items():
            tensor = np.ascontiguousarray(layout.to_torch(path, np.asarray(array, np.float32)))
            moments.setdefault(layout.torch_key(path), {})[theirs] = tensor
    keys = list(audio_vae.audio_vae_state_dict(variables))
    # What is not trained here (latent statistics, a frozen encoder) has no moments, as in torch before a gradient.
    states = {
        i: {"step": np.asarray(count, np.float32), **moments[key]} for i, key in enumerate(keys) if key in moments
    }
    group = {
        "lr": float(learning_rate),
        "betas": (float(settings["b1"]), float(settings["b2"])),
        "eps": float(settings["eps"]),
        "weight_decay": float(settings["weight_decay"]),
        "amsgrad": False,
        "maximize": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": True,
        "params": list(range(len(keys))),
    }
    return {"state": states, "param_groups": [group]}


def _training(checkpoint, dilations, strict):
    notes = []
    tensors = state_dict.unwrapped(audio_vae.find_state_dict(checkpoint))
    optimizers = checkpoint.get("optimizer_states", [checkpoint.get("optimizer_state_dict")])
    optimizers = [found for found in optimizers if found] if isinstance(optimizers, list) else []
    schedulers = checkpoint.get("lr_schedulers", [checkpoint.get("scheduler_state_dict")])
    schedulers = [found for found in schedulers if isinstance(found, dict)] if isinstance(schedulers, list) else []
    of_discriminator = {key: value for key, value in tensors.items() if key.startswith("discriminator.")}
    of_model = {key.removeprefix("model."): value for key, value in tensors.items() if _is_of_model(key)}
    moments, of_moments = [], (of_model, discriminator_tensors(of_discriminator))
    for optimizer, parameters in zip(optimizers, of_moments, strict=False):
        moments.append(_moments(optimizer, parameters, notes))
    moments += [None] * (2 - len(moments))
    step = _batches(checkpoint, moments, notes)
    hyperparameters = checkpoint.get("hyper_parameters")
    overrides = _settings(hyperparameters)
    for section, optimizer, scheduler in zip(
        ("optimizer", "discriminator_optimizer"), optimizers, schedulers + [{}] * 2, strict=False
    ):
        overrides |= _optimizer_settings(section, optimizer, scheduler, step, notes)
    stated = _entries(hyperparameters).get("use_adversarial")
    if of_discriminator or isinstance(stated, bool):
        overrides["use_adversarial"] = bool(of_discriminator)
    if moments[1] is not None and "adversarial.warmup_steps" not in overrides:
        # Its updates began when the warm-up was over.
        every = overrides.get("discriminator_update_every", 1)
        overrides["adversarial.warmup_steps"] = max(0, step - moments[1].step * every)
    if of_discriminator:
        found, assumed = architecture.infer_ensemble(of_moments[1])
        notes += [f"the discriminator: {note}" for note in assumed]
        overrides |= {f"discriminator.{key}": value for key, value in found.items()}
    imported = audio_vae.from_checkpoint(checkpoint, dilations=dilations, strict=strict)
    model = {f"model.{key}": getattr(imported.model, key) for key in audio_vae.CONFIG_KEYS}
    overrides = {**model, "data.channels": imported.model.in_channels, **overrides}
    if imported.model.encoder_frozen:
        overrides["model.encoder_frozen"] = True
    return ImportedTraining(
        audio_vae=imported,
        step=step,
        moments=moments[0],
        discriminator=of_moments[1] if of_discriminator else None,
        discriminator_moments=moments[1],
        overrides=overrides,
        notes=[*imported.notes, *notes],
    )


def _is_of_model(key):
    return key.removeprefix("model.").partition(".")[0] in ("encoder", "decoder", "latent_mean", "latent_std")


def _batches(checkpoint, moments, notes):
    """The number of batches seen: Lightning's `global_step` counts the updates of both optimizers."""
    counted = checkpoint.get("global_step", 0)
    if not isinstance(counted, int) or counted < 0:
        raise CheckpointError(f"its global_step is {counted!r}, not a count")
    step = _lightnings_batches(checkpoint.get("loops"))
    if step is None and all(moments):
        updates = [moment.step for moment in moments]
        step = max(updates) if sum(updates) == counted else counted // 2
    if step is None or step == counted:
        return counted
    notes.append(f"global_step={counted} counts the updates of both optimizers; {step} batches were seen")
    return step


def _lightnings_batches(loops):
    value = loops
    for key in ("fit_loop", "epoch_loop.batch_progress", "total", "completed"):
        value = value.get(key) if isinstance(value, dict) else None
    return value if isinstance(value, int) and value > 0 else None


def _moments(optimizer, parameters, notes):
    """AdamW's state by key: torch numbers the parameters in the order in which the model has them."""
    states, groups = optimizer.get("state"), optimizer.get("param_groups")
    if not isinstance(states, dict) or not isinstance(groups, list) or not groups:
        raise CheckpointError("its optimizer state has no state and param_groups")
    numbers = [number for group in groups for number in group["params"]]
    keys = [key for key in parameters if not layout.is_buffer(key)]
    without_encoder = [key for key in keys if not key.startswith("encoder.")]
    for candidate in (keys, without_encoder, [k for k in without_encoder if not k.startswith("latent_")]):
        names = dict(zip(numbers, candidate, strict=False))
        if len(candidate) == len(numbers) and all(_fits(states.get(n), parameters[k]) for n, k in names.items()):
            break
    else:
        raise CheckpointError(
            f"its optimizer has {len(numbers)} parameters, which do not match the {len(keys)} of the network"
        )
    steps = {int(state["step"]) for state in states.values()}
    if len(steps) > 1:
        notes.append(f"its parameters were updated {min(steps)} to {max(steps)} times; {max(steps)} is taken for all")
    if any(group.get("amsgrad") for group in groups):
        notes.append("its AMSGrad maxima are dropped: AdamW goes on without them")
    zeros = {key: np.broadcast_to(np.float32(0), parameters[key].shape) for key in keys}
    averages = [
        zeros | {name: states[number][moment] for number, name in names.items() if number in states}
        for moment in ("exp_avg", "exp_avg_sq")
    ]
    return Moments(max(steps, default=0), *averages)


def _fits(state, parameter):
    """Whether one parameter's state is of its shape; a parameter that never had a gradient has none."""
    if state is None:
        return True
    moments = [state.get(name) if isinstance(state, dict) else None for name in ("exp_avg", "exp_avg_sq")]
    step = state.get("step") if isinstance(state, dict) else None
    return np.size(step) == 1 and all(isinstance(m, np.ndarray) and m.shape == parameter.shape for m in moments)


def _settings(hyperparameters):
    """Config keys for the hyperparameters that we know; the rest of them may be anything."""
    found = {}
    values = _entries(hyperparameters)
    for section in [values, *(_entries(values.get(name)) for name in _SECTIONS)]:
        for name, key in _SETTINGS.items():
            if isinstance(section.get(name), (int, float)) and not isinstance(section[name], bool):
                found[key] = section[name]
    return {key: value for key, value in found.items() if math.isfinite(value)}


def _entries(value):
    """The names and values of a dict, or of what a placeholder was to be made of."""
    if isinstance(value, Placeholder):
        state = value.state
        if isinstance(state, tuple):  # functools.partial: function, args, keywords, attributes
            state = next((part for part in state if isinstance(part, dict) and part), {})
        value = {**value.entries, **state} if isinstance(state, dict) else value.entries
    return value if isinstance(value, dict) else {}


def _optimizer_settings(section, optimizer, scheduler, step, notes):
    group = optimizer["param_groups"][0]
    found = {
        f"{section}.{key}": float(group[name]) for name, key in _GROUP_SETTINGS.items() if _is_rate(group.get(name))
    }
    betas = group.get("betas")
    if isinstance(betas, (tuple, list)) and len(betas) == 2 and all(map(_is_rate, betas)):
        found |= {f"{section}.b1": float(betas[0]), f"{section}.b2": float(betas[1])}
    rates = scheduler.get("base_lrs") or [group.get("initial_lr", group.get("lr"))]
    if _is_rate(rates[0]) and rates[0] > 0:
        found[f"{section}.learning_rate"] = float(rates[0])
    if _is_rate(scheduler.get("eta_min")):
        found[f"{section}.final_learning_rate"] = float(scheduler["eta_min"])
    length = scheduler.get("T_max")
    if section == "optimizer" and isinstance(length, int):
        if length > step:
            found["num_steps"] = length
        else:
            notes.append(
                f"its schedule of {length} steps is over; config.num_steps stands, and the learning rate follows "
                "the config's cosine over that"
            )
    return found


def _is_rate(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
