"""Imports a training run of the PyTorch system: weights, moments, step, settings."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
import optax

from audiovae_jax.errors import CheckpointError, as_checkpoint_error, naming
from audiovae_jax.models.audio_vae import CONFIG_KEYS
from audiovae_jax.torch_io import architecture, audio_vae, dialects, export, hyperparameters, layout, source, state_dict
from audiovae_jax.torch_io.discriminator import discriminator_tensors, import_discriminator
from audiovae_jax.training.state import TrainState, split_projection, trainable_params, with_initial, with_projection
from audiovae_jax.training.step import Recipe

PyTree = Any


@dataclasses.dataclass
class Moments:
    """AdamW's state.

    Attributes:
      step: number of updates.
      exp_avg: first moments by torch's key, in torch's layout.
      exp_avg_sq: second moments, likewise.
    """

    step: int
    exp_avg: dict[str, np.ndarray]
    exp_avg_sq: dict[str, np.ndarray]


@dataclasses.dataclass
class ImportedTraining:
    """A run of the PyTorch system.

    Attributes:
      audio_vae: the model.
      step: batches seen.
      moments: of the model's optimizer, or None.
      discriminator: tensors of the discriminator, or None.
      discriminator_moments: of the discriminator's optimizer, or None.
      overrides: config keys with values from the file.
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
        """Arguments of `EnCodecDiscriminator` from the file."""
        prefix = "discriminator."
        found = {key.removeprefix(prefix): value for key, value in self.overrides.items() if key.startswith(prefix)}
        rate = self.audio_vae.sample_rate
        return {**found, "mel_stft_sample_rate": rate} if rate else found


def read_training(
    path: str | Path,
    *,
    dilations: tuple[int, ...] | None = None,
    strict: bool = True,
    model_config: str | Path | None = None,
) -> ImportedTraining:
    """Read a run from a Lightning checkpoint or a `save_model` file.

    A file that contains only weights is read as a run at its start, and so is a file of another project.

    Args:
      path: the file, or a folder of another project.
      dilations, strict, model_config: see `audio_vae.import_audio_vae`.

    Raises:
      CheckpointError: the file cannot be read, or its parts do not fit together.
    """
    checkpoint = source.read_source(path, model_config=model_config)
    with naming(path), as_checkpoint_error("its contents are not those of a file of the PyTorch system"):
        return _training(checkpoint, dilations, strict)


def train_state(
    imported: ImportedTraining,
    recipe: Recipe,
    fresh: TrainState,
    notes: list[str],
    *,
    weights_only: bool = False,
    reset: tuple[str, ...] = (),
) -> TrainState:
    """Return `fresh` with the state of an imported run.

    A part that the run lacks keeps its initial value. So does a discriminator of another architecture.

    Args:
      imported: from `read_training`.
      recipe: of the run that starts.
      fresh: its initial state.
      notes: gets a line for what was imported, and for each part that starts from its initial value.
      weights_only: whether to keep the step and optimizers of `fresh`.
      reset: patterns of the model's parameters to keep from `fresh`, with its optimizer's state. Every parameter of
        another shape must match one.

    Raises:
      CheckpointError: the model differs from the recipe's.
    """
    model = imported.audio_vae
    for key in CONFIG_KEYS:
        theirs, ours = getattr(model.model, key), getattr(recipe.model, key)
        if theirs != ours and not reset:
            raise CheckpointError(
                f"its model has {key}={theirs}, but config.model.{key} is {ours}; set it to the file's"
            )
    parts = {
        "step": jnp.asarray(0 if weights_only else imported.step, jnp.int32),
        **model.jax_variables(),
    }
    if reset:
        parts["params"] = with_initial(parts["params"], fresh.params, reset)
        statistics = parts["latent_statistics"]
        if jax.tree.map(jnp.shape, statistics) != jax.tree.map(jnp.shape, fresh.latent_statistics):
            parts["latent_statistics"] = fresh.latent_statistics
        notes.append(f"config.init_reset={tuple(reset)}: these parameters are new")
    trainable = trainable_params(parts["params"], recipe.optimizer.learning_rate_factors)
    if fresh.averaged_params is not None:
        parts["averaged_params"] = jax.tree.map(jnp.array, trainable)  # copies: a step donates both
    trained = with_projection(trainable, fresh.alignment_params)
    optimizers = {"opt_state": (fresh.opt_state, trained, None if reset else imported.moments)}
    if recipe.discriminator is not None and imported.discriminator is not None:
        try:
            params = import_discriminator(imported.discriminator, recipe.discriminator)
            parts["discriminator_params"] = params
            optimizers["discriminator_opt_state"] = (
                fresh.discriminator_opt_state,
                params,
                imported.discriminator_moments,
            )
        except CheckpointError as error:
            notes.append(f"warning: the discriminator keeps its initial values: {error}")
    elif recipe.discriminator is not None:
        notes.append("it contains no discriminator; ours keeps its initial values")
    for name, (opt_state, params, moments) in ({} if weights_only else optimizers).items():
        is_adamw = (recipe.optimizer if name == "opt_state" else recipe.discriminator_optimizer).name == "adamw"
        taken = with_moments(opt_state, params, moments) if is_adamw and moments is not None else None
        if taken is not None:
            parts[name] = taken
        else:
            why = "there are no moments that fit" if moments is None else "the moments belong to folded weights"
            why = why if is_adamw else "config has another optimizer than AdamW"
            notes.append(f"{name} keeps its initial value: {why}")
    counted = "the step and the optimizers are reset;" if weights_only else f"step {imported.step},"
    notes.append(f"restored: {counted} {', '.join(name for name in parts if name != 'step')}")
    return fresh.replace(**parts)


def with_moments(opt_state: PyTree, params: PyTree, moments: Moments) -> PyTree | None:
    """AdamW's state over `params` with the moments of a torch file.

    Returns:
      None if the moments are of other parameters. This includes folded weights, whose moments are not those of gain and
      direction.
    """
    shapes = jax.eval_shape(lambda: split_projection(params)[0])
    trees = []
    for tensors in (moments.exp_avg, moments.exp_avg_sq):
        filled = state_dict.fill(shapes, dict(tensors))
        kept = ("latent_mean", "latent_std", "encoder.")  # statistics are not trained here; nor is a frozen encoder
        surplus = [key for key in filled.problems["surplus"] if not key.startswith(kept)]
        if surplus or filled.problems["unusable"] or any("folded" in line.note for line in filled.lines):
            return None
        # A parameter that never had a gradient has no moments, so they are zero.
        moved = jax.tree.map(jnp.asarray, filled.params)
        zeros = flax.traverse_util.flatten_dict(jax.tree.map(jnp.zeros_like, params))
        trees.append(flax.traverse_util.unflatten_dict(zeros | flax.traverse_util.flatten_dict(moved)))
    count = jnp.asarray(moments.step, jnp.int32)
    return optax.tree.set(opt_state, mu=trees[0], nu=trees[1], count=count)


def optimizer_state_dict(
    opt_state: PyTree, variables: Mapping[str, Any], *, learning_rate: float, settings: Mapping[str, float]
) -> dict:
    """The state dict of `torch.optim.AdamW` over all parameters of the torch model.

    Args:
      opt_state: of `Optimizer`, named "adamw".
      variables: of the model, which give the order of its parameters.
      learning_rate: current.
      settings: `b1`, `b2`, `eps`, `weight_decay`.
    """
    count = float(optax.tree.get(opt_state, "count"))
    moments = {}
    for ours, theirs in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
        of_model, _ = split_projection(optax.tree.get(opt_state, ours))
        for path, array in flax.traverse_util.flatten_dict(of_model).items():
            tensor = np.ascontiguousarray(layout.to_torch(path, np.asarray(array, np.float32)))
            moments.setdefault(layout.torch_key(path), {})[theirs] = tensor
    keys = list(export.audio_vae_state_dict(variables))
    # Latent statistics and a frozen encoder have no moments, like torch parameters without a gradient.
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
    audio_vae.describe(checkpoint)
    tensors = state_dict.unwrapped(audio_vae.find_state_dict(checkpoint))
    if dialects.find(tensors, []):
        return _of_another_project(checkpoint, tensors, dilations, strict)
    optimizers = checkpoint.get("optimizer_states", [checkpoint.get("optimizer_state_dict")])
    optimizers = [found for found in optimizers if found] if isinstance(optimizers, list) else []
    schedulers = checkpoint.get("lr_schedulers", [checkpoint.get("scheduler_state_dict")])
    schedulers = [found for found in schedulers if isinstance(found, dict)] if isinstance(schedulers, list) else []
    hparams = checkpoint.get("hyper_parameters")
    of_discriminator = {key: value for key, value in tensors.items() if key.startswith("discriminator.")}
    networks = {
        "model": {key.removeprefix("model."): value for key, value in tensors.items() if _is_of_model(key)},
        "discriminator": discriminator_tensors(of_discriminator),
    }
    moments = [
        _moments(optimizer, parameters, name, notes)
        for optimizer, (name, parameters) in zip(optimizers, networks.items(), strict=False)
    ]
    moments += [None] * (2 - len(moments))
    imported = audio_vae.from_checkpoint(
        {**checkpoint, "global_step": None}, dilations=dilations, strict=strict
    )  # counted below, with the optimizers' updates
    updates = [found.step for found in moments if found is not None]
    step = audio_vae.batches_seen(checkpoint, notes, bool(of_discriminator), updates) or 0
    overrides = {**_model_overrides(imported), **hyperparameters.settings(hparams)}
    if imported.sample_rate is not None:
        overrides["data.sample_rate"] = imported.sample_rate
    if imported.model.encoder_frozen or _encoder_was_frozen(moments[0], networks["model"], notes):
        overrides["model.encoder_frozen"] = True
    overrides |= hyperparameters.rates(hparams)
    for section, optimizer, scheduler in zip(
        ("optimizer", "discriminator_optimizer"), optimizers, schedulers + [{}] * 2, strict=False
    ):
        overrides |= hyperparameters.optimizer_settings(section, optimizer, scheduler, step, notes)
    stated = hyperparameters.entries(hparams).get("use_adversarial")
    if of_discriminator or isinstance(stated, bool):
        overrides["use_adversarial"] = bool(of_discriminator)
    if moments[1] is not None and "adversarial.warmup_steps" not in overrides:
        # The discriminator's updates start after the warm-up.
        every = overrides.get("discriminator_update_every", 1)
        overrides["adversarial.warmup_steps"] = max(0, step - moments[1].step * every)
    if of_discriminator:
        try:
            found, assumed = architecture.infer_ensemble(networks["discriminator"])
            notes += [f"the discriminator: {note}" for note in assumed]
            overrides |= {f"discriminator.{key}": value for key, value in found.items()}
        except CheckpointError as error:
            notes.append(f"the discriminator's arguments cannot be inferred: {error}")
    return ImportedTraining(
        audio_vae=imported,
        step=step,
        moments=moments[0],
        discriminator=networks["discriminator"] if of_discriminator else None,
        discriminator_moments=moments[1],
        overrides=overrides,
        notes=[*imported.notes, *notes],
    )


def _of_another_project(checkpoint, tensors, dilations, strict):
    """Read the weights of another project's model as a run at its start."""
    others = [name for name in audio_vae.TRAINING_KEYS if checkpoint.get(name)]
    imported = audio_vae.from_checkpoint(checkpoint, dilations=dilations, strict=strict)
    notes = list(imported.notes)
    if others:
        notes.append(f"only the weights are read, not {', '.join(others)} and the step of its training")
    found = [key for key in tensors if key.startswith("discriminator.")]
    if found:
        notes.append(
            f"its discriminator ({len(found)} tensors) is not imported; train a new one. EnCodec's convolutions see "
            "all audio channels together and dilate over frames. Ours see each channel alone and dilate over bins"
        )
    overrides = _model_overrides(imported)
    if imported.sample_rate is not None:
        overrides["data.sample_rate"] = imported.sample_rate
    return ImportedTraining(imported, 0, None, None, None, overrides, notes)


def _model_overrides(imported):
    found = {f"model.{key}": getattr(imported.model, key) for key in CONFIG_KEYS}
    return {**found, "data.channels": imported.model.in_channels}


def _is_of_model(key):
    return key.removeprefix("model.").partition(".")[0] in ("encoder", "decoder", "latent_mean", "latent_std")


def _encoder_was_frozen(moments, parameters, notes):
    """Whether the optimizer trained everything except the encoder."""
    encoder = [key for key in parameters if key.startswith("encoder.")]
    if moments is None or not moments.step or any(key in moments.exp_avg for key in encoder):
        return False
    notes.append("its optimizer never updated the encoder, so the encoder is frozen here too")
    return True


def _moments(optimizer, parameters, network, notes):
    """AdamW's state by key.

    Torch numbers the parameters in the order of the module, if there is one group.

    Returns:
      None if the state does not belong to the network's parameters. `notes` gets the reason.
    """
    try:
        states, groups = optimizer["state"], optimizer["param_groups"]
        numbers = [number for group in groups for number in group["params"]]
        names = _parameter_names(groups, numbers, parameters, states)
        if names is None:
            raise ValueError(f"{len(numbers)} parameters in {len(groups)} groups, but {len(parameters)} tensors here")
        steps = {int(states[number]["step"]) for number in names if number in states}
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        notes.append(f"the state of the {network}'s optimizer is not AdamW's over its parameters ({error})")
        return None
    if len(steps) > 1:
        notes.append(f"parameters of the {network} were updated {min(steps)} to {max(steps)} times; the most is used")
    if any(group.get("amsgrad") for group in groups):
        notes.append(f"the AMSGrad maxima of the {network}'s optimizer are dropped: AdamW continues without them")
    if any(group.get("decoupled_weight_decay") is False and group.get("weight_decay") for group in groups):
        notes.append(f"the {network}'s optimizer had its weight decay in the gradient; AdamW's is decoupled")
    averages = [
        {name: states[number][moment] for number, name in names.items() if number in states}
        for moment in ("exp_avg", "exp_avg_sq")
    ]
    return Moments(max(steps, default=0), *averages)


def _parameter_names(groups, numbers, parameters, states):
    """`{number: key}` of the optimizer's parameters; None if unknown."""
    keys = [key for key in parameters if not layout.is_constant(key)]
    named = [name for group in groups for name in group.get("param_names", ())]
    if len(named) == len(numbers):
        plain = list(state_dict.unwrapped({name: np.zeros(0) for name in named}))
        candidates = [[key.removeprefix("model.").removeprefix("discriminator.") for key in plain]]
    else:
        # Parameters that are not trained may be absent from the optimizer.
        trained = [key for key in keys if not key.startswith("latent_")]
        candidates = [keys, trained] + [[k for k in c if not k.startswith("encoder.")] for c in (keys, trained)]
        if len(groups) > 1:
            return None
    for candidate in candidates:
        if len(candidate) == len(numbers) and all(
            key in parameters and _fits(states.get(number), parameters[key])
            for number, key in zip(numbers, candidate, strict=True)
        ):
            return dict(zip(numbers, candidate, strict=True))
    return None


def _fits(state, parameter):
    """Whether a parameter's optimizer state is AdamW's and has its shape.

    A parameter that never had a gradient has no state, which is valid.
    """
    if state is None:
        return True
    moments = [state.get(name) for name in ("exp_avg", "exp_avg_sq")]
    return np.size(state.get("step")) == 1 and all(
        isinstance(moment, np.ndarray) and moment.shape == parameter.shape for moment in moments
    )
