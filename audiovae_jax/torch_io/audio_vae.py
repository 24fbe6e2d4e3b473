"""`import_audio_vae`: reads a model of the PyTorch system or another project."""

import collections
import dataclasses
import json
import math
import warnings
from collections.abc import Collection
from pathlib import Path

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from audiovae_jax.errors import CheckpointError, as_checkpoint_error, naming
from audiovae_jax.models.audio_vae import SIZE_KEYS, AudioVAE, kind_of
from audiovae_jax.torch_io import architecture, dialects, foreign, source, state_dict
from audiovae_jax.torch_io.dialects import NATIVE, Dialect
from audiovae_jax.torch_io.files import reader
from audiovae_jax.torch_io.state_dict import Line

_STATE_DICTS = ("model_state_dict", "state_dict", "model")
# Values that a model may have beyond twice those stored, for small files with much missing.
_SLACK = 1 << 20
STATISTICS = ("latent_mean", "latent_std")
# Fields that `export_audio_vae` writes into safetensors metadata, each as JSON.
_DESCRIBED = ("model_config", "encoder_frozen", "epoch", "global_step", "metadata", "crc32")
# Parts of a Lightning module that need no note when they are left out.
_KNOWN_PARTS = ("discriminator", "loss_calculator")
# Keys that only resuming needs.
TRAINING_KEYS = ("optimizer_states", "optimizer_state_dict", "lr_schedulers", "scheduler_state_dict", "callbacks")


@dataclasses.dataclass
class ImportedAudioVAE:
    """A model from a torch file.

    Attributes:
      model: with the file's architecture.
      variables: its `params` and `latent_statistics`, as float32 numpy arrays, which need no device.
      lines: what happened to each tensor of the file.
      notes: what was inferred, assumed or left out.
      sample_rate: in Hz, if Lightning's `hyper_parameters` or the metadata have it.
      epoch: as the file counts it.
      global_step: number of batches seen; see `batches_seen`.
      metadata: saved with the model. Values that JSON cannot represent are strings.
      dialect: of the file's names.
    """

    model: AudioVAE
    variables: dict
    lines: list[Line]
    notes: list[str]
    sample_rate: int | None = None
    epoch: int | None = None
    global_step: int | None = None
    metadata: dict = dataclasses.field(default_factory=dict)
    dialect: Dialect = NATIVE

    def jax_variables(self) -> dict:
        """Return the variables as JAX arrays."""
        return {name: jax.tree.map(jnp.asarray, tree) for name, tree in self.variables.items()}


def import_audio_vae(
    path: str | Path,
    *,
    dilations: tuple[int, ...] | None = None,
    strict: bool = True,
    model_config: str | Path | None = None,
) -> tuple[AudioVAE, dict]:
    """Import the model in a file of the PyTorch system or of another project.

    The other projects are diffusers (`AutoencoderOobleck`), stable-audio-tools (`oobleck`), DAC and DACVAE.

    Torch is not needed, and nothing in the file is executed. The file may be written by `save_model`, or be a Lightning
    checkpoint, a bare state dict, or safetensors. Keys may have the prefixes `model.`, `module.` and `_orig_mod.`.
    Weight norm may have either of torch's forms, or be folded. Without a `model_config`, the architecture is inferred
    from the tensors' shapes, and a warning lists it. A model of another project may be a part of a larger one. If the
    file also has the average (EMA) of its weights, the average is imported.

    Args:
      path: the file, or a folder; see `source.read_source`.
      dilations: of the residual units, if the file has no `model_config`; by default 1, 3, 9.
      strict: if False, tensors that do not fit are left out. Their parameters keep initial values, and a warning lists
        them.
      model_config: the file of another project's config; by default one beside the weights.

    Returns:
      `(model, variables)`.

    Raises:
      CheckpointError: the file cannot be read, or does not contain a complete model. The message lists the keys that
        are missing, surplus or of another shape.
    """
    imported = read_audio_vae(path, dilations=dilations, strict=strict, model_config=model_config)
    for note in imported.notes:
        warnings.warn(f"{path}: {note}", UserWarning, stacklevel=2)
    return imported.model, imported.jax_variables()


def read_audio_vae(
    path: str | Path,
    *,
    dilations: tuple[int, ...] | None = None,
    strict: bool = True,
    model_config: str | Path | None = None,
) -> ImportedAudioVAE:
    """Like `import_audio_vae`, and report what happened to each tensor."""
    checkpoint = source.read_source(path, skip=TRAINING_KEYS, model_config=model_config)
    with naming(path), as_checkpoint_error("its contents are not those of a file of the PyTorch system"):
        return from_checkpoint(checkpoint, dilations=dilations, strict=strict)


def from_checkpoint(
    checkpoint: dict, *, dilations: tuple[int, ...] | None = None, strict: bool = True
) -> ImportedAudioVAE:
    """Build the model from the result of `read_checkpoint` or `read_source`.

    This removes the state dict from `checkpoint`.

    Raises:
      CheckpointError: as `import_audio_vae`.
    """
    notes, lines = [], []
    describe(checkpoint)
    tensors, dialect = find_model(checkpoint, lines, notes)
    notes += _other_parts(lines)
    adversarial = any(line.key.startswith("discriminator.") for line in lines)
    for key in _STATE_DICTS:
        checkpoint.pop(key, None)
    if dialect is NATIVE:
        model, sample_rate = _build(checkpoint, tensors, dilations, notes), None
        statistics = _latent_statistics(checkpoint, tensors)
    else:
        model, stated = foreign.build(tensors, dialect, _foreign_config(checkpoint), notes)
        sample_rate, width = stated.sample_rate, model.latent_dim
        statistics = {
            "latent_mean": np.zeros(width, np.float32),
            "latent_std": np.full(width, stated.scale, np.float32),
        }
    stored = sum(tensor.size for tensor in tensors.values())
    shapes = model.shapes()["params"]
    claimed = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    if claimed > 2 * stored + _SLACK:
        raise CheckpointError(
            f"its tensors have {stored:,} values, but the model that they describe would have {claimed:,}"
        )
    blocks = len(model.strides)
    filled = state_dict.fill(
        shapes, tensors, lambda path: dialect.key(path, blocks), reason_to_leave_out=dialect.reason_to_leave_out
    )
    params, problems = filled.params, filled.problems
    own = []
    for name, tensor in statistics.items():
        fault = _statistics_fault(name, tensor, model.latent_dim)
        if fault is None:
            if dialect is NATIVE:
                own.append(Line(name, tensor.shape, str(tensor.dtype), f"latent_statistics/{name}"))
            statistics[name] = np.asarray(tensor, np.float32).reshape(-1)
            continue
        problems["missing" if tensor is None else "unusable"].append(f"{name}{fault}")
        statistics[name] = np.full(model.latent_dim, float(name == "latent_std"), np.float32)
    lines = own + filled.lines + lines
    account = state_dict.explain(problems)
    if account and strict:
        raise CheckpointError(
            f"the state dict does not fit the model ({spell_config(model)}):\n{account}\n"
            "strict=False imports the tensors that fit, and keeps initial values for the others"
        )
    if account:
        for part in ("encoder", "decoder"):
            if part not in params:
                raise CheckpointError(f"no tensor of the {part} fits:\n{account}")
        notes.append(f"left out; missing parameters keep their initial values:\n{account}")
        params = _completed(model, params)
    variables = {"params": params, "latent_statistics": statistics}
    hyperparameters = checkpoint.get("hyper_parameters")
    metadata = checkpoint.get("metadata")
    return ImportedAudioVAE(
        model,
        variables,
        lines,
        notes,
        sample_rate=sample_rate or _sample_rate(hyperparameters) or _sample_rate(metadata),
        epoch=_count(checkpoint.get("epoch")),
        global_step=batches_seen(checkpoint, [], adversarial) if dialect is NATIVE else None,
        dialect=dialect,
        metadata={str(key): _for_json(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {},
    )


def _sample_rate(section):
    return _count(section.get("sample_rate")) or None if isinstance(section, dict) else None


def find_state_dict(checkpoint: dict) -> dict:
    """Find the state dict in a checkpoint of any known form.

    Raises:
      CheckpointError: there is none.
    """
    for key in _STATE_DICTS:
        if key in checkpoint:
            if not isinstance(checkpoint[key], dict):
                raise CheckpointError(f"its {key} is a {type(checkpoint[key]).__name__}, not a dict")
            return checkpoint[key]
    known = (reader.METADATA, source.CONFIG, *_DESCRIBED)
    bare = {key: value for key, value in checkpoint.items() if key not in known}
    if bare and all(isinstance(value, np.ndarray) for value in bare.values()):
        return bare
    shown = ", ".join(map(str, list(checkpoint)[:10])) or "nothing"
    raise CheckpointError(f"it contains no state dict, only {shown}")


def find_model(checkpoint: dict, lines: list[Line], notes: list[str]) -> tuple[dict[str, np.ndarray], Dialect]:
    """Find the model's tensors in a checkpoint, without prefixes.

    Args:
      checkpoint: as `read_checkpoint` returns it.
      lines: gets an entry for each tensor of another part.
      notes: gets a line if one of several copies was chosen.

    Returns:
      `(tensors, dialect)`.

    Raises:
      CheckpointError: it contains no model, or several.
    """
    tensors = state_dict.unwrapped(find_state_dict(checkpoint))
    dialect, prefix = dialects.find(tensors, notes) or (NATIVE, "")
    if dialect is NATIVE and not any(key.startswith("encoder.") for key in tensors):
        prefix = "model."
        if not any(key.startswith("model.encoder.") for key in tensors):
            _raise_no_model(checkpoint, tensors)
    own = {}
    starts = (prefix,) if dialect is NATIVE else tuple(prefix + part for part in dialects.PARTS)
    for key, tensor in tensors.items():
        if key.startswith(starts):
            own[key.removeprefix(prefix)] = tensor
        else:
            lines.append(Line(key, tensor.shape, str(tensor.dtype), note="of another part, not of the model"))
    return own, dialect


def _raise_no_model(checkpoint, tensors):
    config = _foreign_config(checkpoint) or {}
    kind = config.get("_class_name") or config.get("model_type")
    of = f"; its config is of {kind}. Give the file or folder of the autoencoder" if kind else ""
    parts = sorted({key.partition(".")[0] for key in tensors})
    raise CheckpointError(
        "there is no AudioVAE in it: no key begins with encoder. or model.encoder., "
        f"only with {', '.join(parts[:10])}{of}"
    )


def _foreign_config(checkpoint):
    """Return another project's config that was read with a checkpoint, or None."""
    metadata = checkpoint.get("metadata")
    candidates = (checkpoint.get(source.CONFIG), checkpoint.get("model_config"), metadata)
    return next((c for c in candidates if isinstance(c, dict) and c.keys() & {"_class_name", "model", "kwargs"}), None)


def batches_seen(checkpoint: dict, notes: list[str], adversarial: bool, updates: Collection[int] = ()) -> int | None:
    """Number of training batches that a checkpoint has seen.

    Lightning's `global_step` counts the updates of both optimizers.

    Args:
      checkpoint: with its state dict, or without.
      notes: gets a line if the two counts differ.
      adversarial: whether it has a discriminator.
      updates: number of updates of each optimizer, if known.

    Returns:
      None if the file has no count.

    Raises:
      CheckpointError: its count is not a valid step.
    """
    counted = checkpoint.get("global_step")
    if counted is None:
        return None
    if _count(counted) is None or counted >= 2**31:
        raise CheckpointError(f"its global_step is {counted!r}, which is not a valid number of steps")
    total = checkpoint.get("loops")
    for key in ("fit_loop", "epoch_loop.batch_progress", "total"):
        total = total.get(key) if isinstance(total, dict) else None
    # In the middle of an epoch, Lightning saves before it counts the batch as completed.
    seen = [_count(total.get(key)) or 0 for key in ("processed", "completed")] if isinstance(total, dict) else [0]
    batches = max(seen)
    if not 0 < batches <= counted:
        batches = counted // 2 if adversarial or len(updates) > 1 else counted
        if len(updates) > 1 and sum(updates) == counted:
            batches = max(updates)
    if batches != counted:
        notes.append(f"global_step={counted} counts the updates of both optimizers; {batches} batches were seen")
    if updates and max(updates) > batches:
        notes.append(f"its optimizer made {max(updates)} updates, more than the {batches} batches that it counts")
    return batches


def describe(checkpoint: dict):
    """Move our fields of safetensors metadata to the top level of `checkpoint`.

    These are the fields that `export_audio_vae` writes. Other metadata is ignored. Tensors are verified
    against their checksums.

    Raises:
      CheckpointError: the config is not JSON, or a tensor is corrupt.
    """
    metadata = checkpoint.pop(reader.METADATA, None) or {}
    for key in _DESCRIBED:
        try:
            if key in metadata:
                checkpoint[key] = json.loads(metadata[key])
        except (ValueError, RecursionError) as error:
            if key == "model_config":
                raise CheckpointError(f"its metadata has a model_config that is not JSON ({error})") from None
    sums = checkpoint.pop("crc32", None)
    for key, value in sums.items() if isinstance(sums, dict) else ():
        if not isinstance(checkpoint.get(key), np.ndarray) or reader.crc32(checkpoint[key]) != value:
            raise CheckpointError(f"it is damaged: {key} does not match its CRC-32")


def _other_parts(lines):
    """Notes on parts of the file that are unexpected and not the model's."""
    counts = collections.Counter(line.key.partition(".")[0] for line in lines)
    unknown = {part: count for part, count in counts.items() if part not in _KNOWN_PARTS}
    return [f"left out {part} ({count} tensors), which is not part of the model" for part, count in unknown.items()]


def _build(checkpoint, tensors, dilations, notes):
    """Build the model of `model_config`, which must agree with the tensors.

    Without a `model_config`, the architecture is inferred from the tensors.
    """
    hyperparameters = checkpoint.get("hyper_parameters")
    config = checkpoint.get("model_config")
    if config is None and isinstance(hyperparameters, dict):
        config = hyperparameters.get("model_config")
    frozen = checkpoint.get("encoder_frozen", False)
    if not isinstance(frozen, bool):
        raise CheckpointError(f"its encoder_frozen is {frozen!r}, not true or false")
    shown = architecture.infer_audio_vae(tensors)
    count = architecture.count_dilations(tensors)
    stated = None
    if config is not None:
        stated = _check_config(config, shown)
    if stated is not None and dilations is not None and tuple(dilations) != tuple(stated):
        raise CheckpointError(f"dilations={tuple(dilations)} were given, but its model_config has {tuple(stated)}")
    source = "given" if dilations is not None else "the usual ones, since shapes do not determine them"
    chosen = dilations or architecture.default_dilations(count) if stated is None else stated
    shown["dilations"] = architecture.check_dilations(chosen, count)
    if config is None:
        notes.append(
            "Checkpoint does not contain 'model_config'; inferred from its tensors: "
            + ", ".join(f"{key}={value}" for key, value in shown.items())
            + f" ({source})"
        )
    elif stated is None:
        notes.append(f"its model_config has no dilations: {shown['dilations']} ({source})")
    try:
        return AudioVAE(**shown, encoder_frozen=frozen)
    except ValueError as error:
        raise CheckpointError(f"its tensors do not belong to an AudioVAE: {error}") from None


def _check_config(given, shown):
    """Check a `model_config` against the tensors' architecture.

    Returns:
      Its dilations, None if it has none.
    """
    if not isinstance(given, dict):
        raise CheckpointError(f"its model_config is a {type(given).__name__}, not a dict")
    unknown = [str(key) for key in given if key not in (*SIZE_KEYS, "_target_")]
    if unknown:
        raise CheckpointError(f"its model_config has unknown keys: {', '.join(unknown)}")
    for key, value in shown.items():
        stated = given.get(key, value)
        stated = tuple(stated) if isinstance(stated, (list, tuple)) else stated
        if repr(stated) != repr(value):
            raise CheckpointError(f"its model_config has {key}={stated!r}, but its tensors have {key}={value}")
    dilations = given.get("dilations")
    return (dilations,) if isinstance(dilations, int) else dilations


def _latent_statistics(checkpoint, tensors):
    """`latent_mean` and `latent_std` as stored; None if missing."""
    found = {}
    beside = checkpoint.get("latent_statistics")
    for name in STATISTICS:
        values = [tensors.pop(name, None), beside.get(name) if isinstance(beside, dict) else None]
        values = [value for value in values if isinstance(value, np.ndarray)]
        if len(values) == 2 and not (values[0].dtype == values[1].dtype and values[0].tobytes() == values[1].tobytes()):
            raise CheckpointError(f"its state dict and its latent_statistics have different {name}")
        found[name] = values[0] if values else None
    return found


def _statistics_fault(name, tensor, latent_dim):
    """Describe what is wrong with a latent statistic.

    The text follows its name. It is None if nothing is wrong, and empty if the tensor is missing.
    """
    if tensor is None:
        return ""
    if tensor.size != latent_dim or tensor.shape not in ((latent_dim,), (1, latent_dim, 1)):
        return f" has shape {tensor.shape}; here it is {(1, latent_dim, 1)}"
    fault = state_dict.fault_of(tensor)
    if not fault and name == "latent_std" and not (tensor > 0).all():
        fault = "has values that are not positive"
    return f" {fault}" if fault else None


def _completed(model, params):
    audio = jnp.zeros((1, model.min_length, model.in_channels))
    initial = model.init(jax.random.key(0), audio, deterministic=True)["params"]
    merged = flax.traverse_util.flatten_dict(initial) | flax.traverse_util.flatten_dict(params)
    return flax.traverse_util.unflatten_dict(merged)


def _count(value):
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _for_json(value):
    if isinstance(value, dict):
        return {str(key): _for_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_for_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return value.tolist() if isinstance(value, np.ndarray) and value.size <= 64 else str(value)


def spell_config(model: AudioVAE) -> str:
    """A model's architecture in one line."""
    return ", ".join(f"{key}={getattr(model, key)}" for key in (*SIZE_KEYS, *kind_of(model)))
