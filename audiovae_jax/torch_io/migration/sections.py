"""Convert each section of the PyTorch system's configs by its class or name."""

import inspect
from collections.abc import Callable

from audiovae_jax import discriminators
from audiovae_jax.torch_io.migration import losses
from audiovae_jax.torch_io.migration.findings import UNKNOWN, Findings, Section

_STEPS = "the learning rate follows a cosine over config.num_steps, updated every step"
_PRINTED = "every start prints it, and writes it to config.json in the workdir"
_SAME = "runs with the same seed are always identical"
_SHARED = ("in_channels", "sample_rate")  # arguments that have one shared key in the new config, under `data`
# Trainer keys that determine the items per update, in addition to the batch of one device.
_FACTORS = {
    "devices": "a run uses all devices that JAX sees; select them with CUDA_VISIBLE_DEVICES",
    "num_nodes": "start the same command on each host",
    "accumulate_grad_batches": "config.accumulation_steps; 1 unless memory is short",
}
# Keys, in any section, whose counterpart is not a config key.
_REMARKS = {
    "experiment_name": "a run is its workdir: --workdir=runs/NAME",
    "run_name": "a run is its workdir: --workdir=runs/NAME",
    "accelerator": "JAX uses the available devices; select others with JAX_PLATFORMS, e.g. cpu",
    "strategy": "a batch is split over all devices that JAX sees",
    **_FACTORS,
}
# Keys, in any section, without a counterpart.
_REASONS = {
    "print_config": _PRINTED,
    "log_hyperparameters": _PRINTED,
    "run_test": "every checkpoint is validated, the last too; try other files with audiovae-jax reconstruct",
    "return_metric": "the last line of a run gives the best val/total_loss",
    "scheduler_interval": _STEPS,
    "scheduler_frequency": _STEPS,
    "gradient_clip_algorithm": "gradients are clipped by their global norm",
    "log_every_n_steps": "every tenth step is recorded",
    "enable_progress_bar": "there is always a progress bar",
    "enable_model_summary": "every start prints the number of parameters",
    "enable_checkpointing": "checkpoints are always written",
    "num_sanity_val_steps": "a run begins with a validation",
    "limit_train_batches": "config.num_steps counts batches; lower it for a trial",
    "limit_val_batches": "config.data.validation_crops sets the amount of validation data",
    "deterministic": _SAME,
    "benchmark": _SAME,
    "min_epochs": "config.num_steps sets the length of a run",
    "max_time": "config.num_steps sets the length of a run; resume a stopped run with the same command",
    "pin_memory": "the next batch is copied to the device during a step",
    "persistent_workers": "threads read crops, not processes",
    "prefetch_factor": "config.data.prefetch_batches sets the number of batches read ahead",
    "drop_last": "every batch is full",
    "shuffle": "every crop is drawn at random, by its number",
    "download": "nothing is downloaded; set config.data.root",
}


def take(values: dict, path: str, found: Findings):
    """Add the contents of a section and its subsections to `found`."""
    section = Section(values, path, found)
    name, cls = path.rpartition(".")[2], section.target.rpartition(".")[2]
    handler = _CLASSES.get(cls) or (_data_module if cls.endswith("DataModule") else None)
    if handler is None and (not section.target or name in _KINDS):
        handler = _NAMES.get(name, _plain)
    if handler is None:
        handler = _unknown_discriminator if name == "discriminator" else _because(UNKNOWN)
    handler(section, found)
    for inner, inside in section.sections():
        take(inside, section.key(inner), found)
    section.remark(_REMARKS)
    section.end(_reason)


def _reason(name):
    return _REASONS.get(name, UNKNOWN)


def _plain(section: Section, found: Findings):
    """Take keys of the root, the model's section or `VAELightningModule`."""
    if (seed := section.whole("seed")) is not None:
        found.settings["seed"] = seed
    _keep_rate(section, "sample_rate", found)
    for key in ("ckpt_path", "resume_from", "resume_from_checkpoint"):
        if (file := section.text(key)) is not None:
            found.settings["init_from"] = file
            found.changed.append((section.key(key), "init_from starts from it in a new workdir; to resume in the "
                                                    "same workdir, run the same command again"))  # fmt: skip
    flags = {"use_adversarial": "use_adversarial", "encoder_frozen": "model.encoder_frozen",
             "freeze_encoder": "model.encoder_frozen"}  # fmt: skip
    for old, new in flags.items():
        if (value := section.flag(old)) is not None:
            found.settings[new] = value
    for key in ("generator_update_every", "discriminator_update_every"):
        if (value := section.whole(key)) is not None:
            found.settings[key] = value
    if (rate := section.number("discriminator_lr")) is not None:
        found.settings["discriminator_optimizer.learning_rate"] = rate
    legacy = {"adversarial_warmup_steps": "warmup_steps", "adversarial_weight": "adversarial_weight",
              "feature_matching_weight": "feature_matching_weight"}  # fmt: skip
    for old, new in legacy.items():
        if (value := section.number(old)) is not None:
            found.settings.setdefault(f"adversarial.{new}", value)
    _take_kl(section, found)
    for key, fact in (("log_audio_every_n_epochs", "sample_epochs"), ("num_audio_samples", "samples"),
                      ("train_samples", "epoch")):  # fmt: skip
        if (value := section.whole(key)) is not None:
            found.facts.setdefault(fact, (section.key(key), value))


def _lightning_module(section: Section, found: Findings):
    found.settings.setdefault("use_adversarial", False)  # Lightning module's default
    _plain(section, found)


def _architecture(section: Section, found: Findings):
    if (channels := section.whole("in_channels")) is not None:
        found.channels[section.key("in_channels")] = channels
    for key in ("base_channels", "latent_dim", "kernel_size"):
        if (value := section.whole(key)) is not None:
            found.settings[f"model.{key}"] = value
    for key in ("channel_mults", "strides", "dilations"):
        if (value := section.numbers(key)) is not None:
            found.settings[f"model.{key}"] = value
    if (frozen := section.flag("encoder_frozen")) is not None:
        found.settings["model.encoder_frozen"] = frozen


def _loss_calculator(section: Section, found: Findings):
    if section.target:
        found.settings |= {"kl.weight": 1e-4, "kl.warmup_steps": 0, "kl.free_bits": 0.0}  # the class's defaults
    _take_kl(section, found)
    if (channels := section.whole("num_channels")) is not None:
        found.channels[section.key("num_channels")] = channels
    losses.take_losses(section, found)


def _take_kl(section, found):
    for old, new in (("kl_weight", "weight"), ("kl_warmup_steps", "warmup_steps"), ("free_bits", "free_bits")):
        if (value := section.number(old)) is not None:
            found.settings[f"kl.{new}"] = value


def _adversarial(section: Section, found: Findings):
    for key, default in (("adversarial_weight", 1.0), ("feature_matching_weight", 10.0), ("warmup_steps", 0)):
        value = section.number(key, default if section.target else None)
        if value is not None:
            found.settings[f"adversarial.{key}"] = value


def _discriminator(section: Section, found: Findings):
    name = section.target.rpartition(".")[2] or "EnCodecDiscriminator"
    cls = getattr(discriminators, name)
    parameters = inspect.signature(cls).parameters
    taken = {}
    for key, parameter in parameters.items():
        if key in ("parent", "name", "dtype"):
            continue
        value = section.whatever(key)
        if key == "in_channels" and value is not None:
            found.channels[section.key(key)] = value
        elif key.endswith("sample_rate") and value is not None:
            found.sample_rates[section.key(key)] = value
        elif value is not None:
            taken[key] = _tuples(value)
        elif section.target and parameter.default is not parameter.empty and not key.endswith(_SHARED):
            taken[key] = parameter.default
    if section.flag("use_log", True) is not True:
        found.dropped.append((section.key("use_log"), False, "mel spectrograms are always logarithmic"))
    if name == "EnCodecDiscriminator":
        found.settings |= {f"discriminator.{key}": value for key, value in taken.items()}
    else:
        # Default values are omitted.
        taken = {key: value for key, value in taken.items() if value != parameters[key].default}
        found.discriminator = {"_target_": f"audiovae_jax.discriminators.{name}", **taken}


def _unknown_discriminator(section: Section, found: Findings):
    reason = "a torch class: write it in flax (config/README.md) and name it in config.discriminator._target_"
    found.dropped.append((section.key("_target_"), section.target, f"{reason}; until then it is EnCodecDiscriminator"))
    section.leave()


def _optimizer(section: Section, found: Findings):
    cls = section.target.rpartition(".")[2] or "AdamW"
    if cls not in ("AdamW", "Adam"):
        found.dropped.append((section.key("_target_"), section.target, "both optimizers are AdamW"))
        section.leave()
        return
    given = bool(section.target)
    decay = section.number("weight_decay", {"AdamW": 1e-2, "Adam": 0.0}[cls] if given else None)
    if cls == "Adam" and decay:
        found.changed.append((section.key("weight_decay"), "Adam added it to the gradient; here it is decoupled"))
    b1, b2 = section.numbers("betas", (0.9, 0.999) if given else (None, None))
    made = {"weight_decay": decay, "b1": b1, "b2": b2, "learning_rate": section.number("lr", 1e-3 if given else None),
            "eps": section.number("eps", 1e-8 if given else None)}  # fmt: skip
    found.settings |= {f"optimizer.{key}": value for key, value in made.items() if value is not None}
    if section.flag("amsgrad", False):
        found.dropped.append((section.key("amsgrad"), True, "AdamW does not use it"))
    section.ignore("foreach", "fused", "capturable", "maximize", "differentiable")


def _scheduler(section: Section, found: Findings):
    if section.target.rpartition(".")[2] in ("CosineAnnealingLR", ""):
        section.drop({"T_max": _STEPS, "last_epoch": _STEPS})
        if (final := section.number("eta_min", 0.0 if section.target else None)) is not None:
            found.settings["optimizer.final_learning_rate"] = final
    else:
        constant = "final_learning_rate = learning_rate keeps it constant"
        found.dropped.append((section.key("_target_"), section.target, f"{_STEPS}; {constant}"))
        section.leave()


def _data_module(section: Section, found: Findings):
    cls = section.target.rpartition(".")[2].lower()
    found.settings["data.source"] = "musdb18" if "musdb" in cls else "gtzan" if "gtzan" in cls else "auto"
    for key in ("root", "data_dir", "root_dir", "audio_dir", "path"):
        if (root := section.text(key)) is not None:
            found.settings["data.root"] = root
    _keep_rate(section, "sample_rate", found)
    found.facts["data_rate"] = section.key("sample_rate")
    if (channels := section.whole("channels")) is not None:
        found.channels[section.key("channels")] = channels
    if (workers := section.whole("num_workers")) is not None:
        found.settings["data.num_threads"] = max(1, workers)
        found.changed.append((section.key("num_workers"), "threads read crops, not processes"))
    for key, fact in (("batch_size", "batch_size"), ("train_samples", "epoch"), ("chunk_duration", "crop_seconds"),
                      ("crop_duration", "crop_seconds"), ("chunk_length", "crop_samples"),
                      ("crop_length", "crop_samples")):  # fmt: skip
        if (value := section.number(key)) is not None:
            found.facts[fact] = (section.key(key), value)
    if (crops := section.whole("val_samples")) is not None:
        found.settings["data.validation_crops"] = crops
    if (seed := section.whole("seed")) is not None:
        found.settings.setdefault("seed", seed)


def _trainer(section: Section, found: Findings):
    for key in ("max_epochs", "max_steps", "check_val_every_n_epoch", "val_check_interval"):
        value = section.number(key)
        if value is not None and value != -1:
            found.facts[key] = (section.key(key), value)
    for key, remark in _FACTORS.items():
        value = section.whatever(key)
        if value is not None:
            found.facts[key] = (section.key(key), value)
            found.changed.append((section.key(key), remark))
    precision = section.whatever("precision")
    if precision is not None:
        found.facts["precision"] = (section.key("precision"), str(precision))
    if (norm := section.number("gradient_clip_val")) is not None:
        found.settings |= {"optimizer.clip_norm": float(norm), "discriminator_optimizer.clip_norm": float(norm)}
    if section.number("overfit_batches", 0):
        found.settings["data.fixed_batch"] = True


def _model_checkpoint(section: Section, found: Findings):
    for key, fact in (("every_n_epochs", "checkpoint_epochs"), ("every_n_train_steps", "checkpoint_steps")):
        if (value := section.whole(key)) is not None:
            found.facts[fact] = (section.key(key), value)
    where = "checkpoints are in the workdir, by their step"
    kept = "the most recent ones and the best are kept: see config.best_metric and config.best_checkpoints_kept"
    section.drop({"dirpath": where, "filename": where})
    for key, value in (("monitor", "val/total_loss"), ("mode", "min"), ("save_last", True)):
        if (given := section.whatever(key, value)) != value:
            found.dropped.append((section.key(key), given, kept))
    section.drop({"save_top_k": kept, "save_weights_only": "a checkpoint is complete, so that a run can be resumed"})
    section.ignore("auto_insert_metric_name", "verbose")


def _samples(section: Section, found: Findings):
    _keep_rate(section, "sample_rate", found)
    for key, fact in (("log_every_n_epochs", "sample_epochs"), ("num_samples", "samples")):
        if (value := section.whole(key)) is not None:
            found.facts[fact] = (section.key(key), value)


def _mlflow(section: Section, found: Findings):
    found.settings["logging.writers"] = ("tensorboard", "mlflow")
    for key, new in (("tracking_uri", "mlflow_uri"), ("experiment_name", "mlflow_experiment")):
        if (value := section.text(key)) is not None:
            found.settings[f"logging.{new}"] = value
    section.drop({
        "save_dir": "without a tracking_uri, runs are recorded in mlflow.db next to their workdirs",
        "artifact_location": "the server's default is used",
        "run_name": "a run has its workdir's name",
        "run_id": "a workdir belongs to one run, which is resumed in it",
        "log_model": "the best model is logged as an artifact at the end",
        "prefix": "metrics have their own names",
    })  # fmt: skip


def _wandb(section: Section, found: Findings):
    found.settings["logging.writers"] = ("tensorboard", "wandb")
    if (project := section.text("project")) is not None:
        found.settings["logging.wandb_project"] = project
    offline = "runs are recorded in the workdir, and uploaded by `wandb sync`"
    section.drop({
        "offline": offline,
        "entity": offline,
        "save_dir": offline,
        "name": "a run has its workdir's name",
        "id": "a workdir belongs to one run, which is resumed in it",
        "log_model": "the best model is an artifact, at the end",
    })  # fmt: skip


def _because(reason: str) -> Callable[[Section, Findings], None]:
    """Return a handler for a section without a counterpart."""

    def drop(section: Section, found: Findings):
        found.dropped.append((section.path, section.target or None, reason))
        section.leave()

    return drop


def _elsewhere(remark: str) -> Callable[[Section, Findings], None]:
    """Return a handler for a section whose counterpart is not a config key."""

    def take_whole(section: Section, found: Findings):
        found.changed.append((section.path, remark))
        section.leave()

    return take_whole


def _keep_rate(section, key, found):
    if (rate := section.whole(key)) is not None:
        found.sample_rates[section.key(key)] = rate


def _tuples(value):
    return tuple(_tuples(entry) for entry in value) if isinstance(value, list) else value


_CLASSES: dict[str, Callable[[Section, Findings], None]] = {
    "VAELightningModule": _lightning_module,
    "AudioVAE": _architecture,
    "VAELossCalculator": _loss_calculator,
    "AdversarialLossCalculator": _adversarial,
    **{
        name: _discriminator
        for name in (
            "EnCodecDiscriminator", "MultiScaleSTFTDiscriminator", "MultiScaleDiscriminator",
            "MultiPeriodDiscriminator", "MultiScaleMelSTFTDiscriminator", "BandSplitDiscriminator",
        )
    },
    "AdamW": _optimizer,
    "Adam": _optimizer,
    "CosineAnnealingLR": _scheduler,
    "MUSDB18DataModule": _data_module,
    "GTZANDataModule": _data_module,
    "Trainer": _trainer,
    "ModelCheckpoint": _model_checkpoint,
    "AudioReconstructionCallback": _samples,
    "EarlyStopping": _because("set config.early_stopping, whose patience counts validations"),
    "LearningRateMonitor": _elsewhere("the learning rate is recorded with the losses"),
    "RichProgressBar": _elsewhere("there is always a progress bar"),
    "TQDMProgressBar": _elsewhere("there is always a progress bar"),
    "MLflowVAETrackerCallback": _elsewhere("with mlflow in config.logging.writers, the best model is an artifact"),
    "MLFlowLogger": _mlflow,
    "WandbLogger": _wandb,
    "TensorBoardLogger": _elsewhere("TensorBoard events are in the workdir"),
    "CSVLogger": _elsewhere("metrics.jsonl in the workdir contains all metrics"),
}  # fmt: skip
# Sections that are handled by name even if their class is unknown.
_KINDS = ("optimizer", "scheduler", "datamodule", "trainer")
_NAMES: dict[str, Callable[[Section, Findings], None]] = {
    "architecture": _architecture,
    "loss_calculator": _loss_calculator,
    "adversarial_loss_calculator": _adversarial,
    "adversarial": _adversarial,
    "discriminator": _discriminator,
    "optimizer": _optimizer,
    "scheduler": _scheduler,
    "datamodule": _data_module,
    "trainer": _trainer,
    "paths": _elsewhere("all files of a run are in its workdir"),
    "hydra": _because("Hydra is not used"),
    "model_saving_callback": _elsewhere("the best checkpoint is kept; save_model saves it as a model"),
}
