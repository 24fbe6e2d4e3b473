"""Conversion between PyTorch files and saved models, with reports."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from audiovae_jax.discriminators import EnCodecDiscriminator
from audiovae_jax.errors import CheckpointError
from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.persistence import model_folder, saved_model, training_state
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.persistence.locate import Kind, locate_model, pinned
from audiovae_jax.storage.hub import is_hub
from audiovae_jax.torch_io import audio_vae, export, layout, training
from audiovae_jax.torch_io.discriminator import read_discriminator
from audiovae_jax.torch_io.source import read_source
from audiovae_jax.torch_io.state_dict import Line
from audiovae_jax.training.optimizer import cosine


@dataclasses.dataclass(frozen=True)
class Imported:
    """The result of `import_torch`.

    Attributes:
      model: the model that was written.
      lines: what happened to each tensor of the file.
      notes: what was inferred, assumed or left out.
      has_optimizer: whether the file has optimizer states, which a saved model does not keep.
      compared: number of the model's tensors that were exported again and compared with the file.
      largest_difference: largest absolute difference among them.
    """

    model: AudioVAE
    lines: tuple[Line, ...]
    notes: tuple[str, ...]
    has_optimizer: bool
    compared: int
    largest_difference: float


@dataclasses.dataclass(frozen=True)
class Exported:
    """The result of `export_torch`.

    Attributes:
      model: the model that was written.
      tensors: number of tensors.
      parameters: number of their values, which include the latent statistics.
      optimizer_step: step of the optimizer's state; None if it was not written.
      notes: remarks on the states.
      left_out: parts of the source that the file does not contain.
    """

    model: AudioVAE
    tensors: int
    parameters: int
    optimizer_step: int | None
    notes: tuple[str, ...]
    left_out: tuple[str, ...]


def import_torch(
    source: str,
    target: str,
    *,
    dilations: tuple[int, ...] | None = None,
    strict: bool = True,
    model_config: str | None = None,
) -> Imported:
    """Convert a PyTorch file to a saved model.

    Args:
      source: a torch, Lightning or safetensors file, or a folder of another project; or the URL of one. The metadata
        of the saved model names it. For a model on the hub, this is its URL with the commit.
      target: the folder to create, or its URL in a bucket.
      dilations, strict, model_config: see `torch_io.import_audio_vae`.

    Raises:
      CheckpointError: the file cannot be converted, or the folder cannot be written.
    """
    model_folder.require_target(target)
    source = pinned(source)
    with saved_model.at_hand(source) as local:
        imported = training.read_training(local, dilations=dilations, strict=strict, model_config=model_config)
    model = imported.audio_vae
    lines, notes = list(model.lines), list(imported.notes)
    discriminator = params = None
    if imported.discriminator is not None:
        try:
            discriminator = EnCodecDiscriminator(**imported.discriminator_arguments())
            filled = read_discriminator(imported.discriminator, discriminator)
            params = jax.tree.map(jnp.asarray, filled.params)
            lines = [line for line in lines if not line.key.startswith("discriminator.")]
            lines += [_prefixed(line, "discriminator") for line in filled.lines]
        except CheckpointError as error:
            discriminator = None
            notes.append(f"the discriminator was not saved: {error}")
    saved_model.save_model(
        model.model,
        model.variables,
        target,
        epoch=model.epoch,
        global_step=imported.step,
        metadata={**model.metadata, "imported_from": source if is_hub(source) else Path(source).name},
        discriminator=discriminator,
        discriminator_params=params,
        sample_rate=model.sample_rate,
    )
    module, dialect, has_optimizer = model.model, model.dialect, imported.moments is not None
    del imported, model, params  # so that their memory is free for the round trip, which reads both again
    compared, difference = _round_trip(source, target, dialect)
    return Imported(module, tuple(lines), tuple(notes), has_optimizer, compared, difference)


def export_torch(source: str, target: str, *, step: int | None = None, project: str | None = None) -> Exported:
    """Write a model as a file of the PyTorch system, or for another project.

    If the source is a training workdir, a `.pt` file also contains the states of the optimizer and the schedule.

    Args:
      source: any path that `load_model` accepts.
      target: a path that ends in `.pt` or `.safetensors`. For another project, see `export.export_for`.
      step: the checkpoint of a workdir; by default the best.
      project: "diffusers" or "stable-audio-tools".

    Raises:
      CheckpointError: the model cannot be read, or the file cannot be written.
    """
    export.require_target(target, project)
    loaded = saved_model.open_model(source, step=step)
    if project is not None:
        return _export_for(project, source, loaded, target)
    states, notes, foreign = {}, [], None
    if loaded.kind is Kind.CHECKPOINT and Path(target).suffix == ".pt":
        checkpoints = Checkpoints(locate_model(source).checkpoints, read_only=True)
        config = checkpoints.config(loaded.global_step)
        if (foreign := _not_of_torch(config["optimizer"], loaded)) is None:
            states = _optimizer_states(checkpoints, config, loaded, notes)
    left_out = _left_out(source, loaded, target)
    left_out += [f"the optimizer's state, {foreign}"] if foreign is not None else []
    written = export.export_audio_vae(
        loaded.model,
        loaded.variables,
        target,
        epoch=loaded.epoch,
        global_step=loaded.global_step,
        metadata=loaded.metadata or None,
        sample_rate=loaded.sample_rate,
        **states,
    )
    optimizer_step = loaded.global_step if states else None
    return _exported(loaded.model, written, optimizer_step, notes, left_out)


def _export_for(project, source, loaded, target):
    left_out = _left_out(source, loaded, target)
    if model_folder.is_calibrated(loaded.variables):
        left_out.append(f"the latent statistics, which {project} does not support: its latents are uncalibrated")
    written = export.export_for(project, loaded.model, loaded.variables, target, loaded.sample_rate)
    return _exported(loaded.model, written, None, [], left_out)


def _exported(model, written, optimizer_step, notes, left_out):
    count = sum(tensor.size for tensor in written.values())
    return Exported(model, len(written), count, optimizer_step, tuple(notes), tuple(left_out))


def _left_out(source, loaded, target):
    """Describe the parts of the model at `source` that the file at `target` lacks."""
    left_out = []
    try:
        there = training_state.beside(loaded, source)
    except CheckpointError as error:  # the model itself is intact
        left_out.append(f"the training state, which cannot be read ({error})")
        there = training_state.Beside(optimizer=False)
    if there.optimizer and loaded.kind is Kind.CHECKPOINT:
        left_out += ["the optimizer's state, which needs a .pt file"] if Path(target).suffix != ".pt" else []
    elif there.optimizer:
        left_out.append("the optimizer's state, which is only exported from a workdir")
    if there.discriminator:
        left_out.append("the discriminator" + (" and its optimizer's state" if loaded.kind is Kind.CHECKPOINT else ""))
    if (dtype := str(np.dtype(loaded.model.dtype))) != "float32":
        left_out.append(f"the model's dtype {dtype} (give --dtype={dtype} when loading)")
    if loaded.sample_rate is None:
        left_out.append("the sample rate, which is unknown (give --sample_rate when loading)")
    return left_out


def _not_of_torch(settings, loaded):
    """Return why an optimizer's state cannot be torch's, or None.

    Torch's is that of AdamW with a cosine schedule.
    """
    if loaded.averaged:
        return "which belongs to the trained parameters, not to their average"
    for key, value in (("name", "adamw"), ("schedule", "cosine")):
        if (found := settings.get(key, value)) != value:
            return f"which is that of config.optimizer.{key}={found}"
    return None


def _optimizer_states(checkpoints, config, loaded, notes):
    opt_state = checkpoints.parts(loaded.global_step, ("opt_state",))["opt_state"]
    settings, step, num_steps = config["optimizer"], loaded.global_step, config["num_steps"]
    first, last = settings["learning_rate"], settings["final_learning_rate"]
    rate = float(cosine(step, num_steps, first, last))
    if step < (warmup_steps := settings.get("warmup_steps", 0)):
        notes.append(
            f"the learning rate's warm-up to step {warmup_steps} is not in torch's cosine schedule, which "
            f"continues at {rate:.3g}"
        )
    scheduler = {
        "T_max": num_steps,
        "eta_min": last,
        "base_lrs": [first],
        "last_epoch": step,
        "_step_count": step + 1,
        "_is_initial": False,
        "_get_lr_called_within_step": False,
        "_last_lr": [rate],
    }
    optimizer = training.optimizer_state_dict(opt_state, loaded.variables, learning_rate=rate, settings=settings)
    return {"optimizer_state": optimizer, "scheduler_state": scheduler}


def _prefixed(line, prefix):
    became = None if line.became is None else f"{prefix}: {line.became}"
    return Line(f"{prefix}.{line.key}", line.shape, line.dtype, became, line.note)


def _round_trip(source, target, dialect):
    """Compare the tensors in `source` with those exported from `target`.

    The export uses the dialect of `source`.

    Returns:
      `(number of tensors, largest difference)`.
    """
    loaded = saved_model.open_model(target)
    back = export.audio_vae_state_dict(loaded.variables, dialect, len(loaded.model.strides))
    with saved_model.at_hand(source) as local:
        found, _ = audio_vae.find_model(read_source(local, skip=audio_vae.TRAINING_KEYS), [], [])
    worst, compared = 0.0, 0
    names = {key: key for key in back} | {layout.parametrized_key(key): key for key in back}
    for key, tensor in found.items():
        if key in names:
            ours = back[names[key]]
        elif f"{key}_v" in back:  # weight norm is folded in the source
            v, g = (back[f"{key}_{leaf}"].astype(np.float64) for leaf in "vg")
            ours = g * v / np.sqrt(np.sum(np.square(v), axis=(1, 2), keepdims=True))
        else:
            continue
        compared += 1
        if ours.shape != tensor.shape:  # an activation's parameter may have another shape
            ours = ours.reshape(tensor.shape)
        worst = max(worst, float(np.abs(ours - np.asarray(tensor, np.float32)).max(initial=0)))
    return compared, worst
