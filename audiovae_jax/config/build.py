"""Build the objects that a config names.

Each object is traced on the shape of a batch, so that errors appear before anything is compiled.
"""

import dataclasses
import inspect

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from audiovae_jax.config import resolve
from audiovae_jax.discriminators import base
from audiovae_jax.distributed.mesh import AXIS
from audiovae_jax.errors import ConfigError
from audiovae_jax.losses import AdversarialLossCalculator, WeightedLosses
from audiovae_jax.losses.alignment import Alignment, takes_batches
from audiovae_jax.losses.kl import KLTerm
from audiovae_jax.losses.weighted import is_off
from audiovae_jax.models.audio_vae import AudioVAE
from audiovae_jax.training.ema import Ema
from audiovae_jax.training.optimizer import Optimizer, factor_of
from audiovae_jax.training.step import RESERVED_METRICS, Recipe


def build_recipe(config: ml_collections.ConfigDict) -> Recipe:
    """Build the train step's recipe from a checked config.

    Raises:
      ConfigError: a name or an argument is invalid, or a named object returns the wrong type or shape.
    """
    adversarial = {}
    if not config.use_adversarial and resolve.TARGET in config.discriminator:
        resolve.build(config.discriminator, "config.discriminator")  # reports misspelt keys of an unused discriminator
    if config.use_adversarial:
        adversarial = {
            "discriminator": build_discriminator(config),
            "adversarial": _construct(AdversarialLossCalculator, config.adversarial, "config.adversarial"),
            "discriminator_optimizer": _build_optimizer(
                config, "discriminator_optimizer", first_step=config.adversarial.warmup_steps
            ),
        }
    model = build_model(config)
    optimizer = _build_model_optimizer(config, model)
    return Recipe(
        model=model,
        losses=build_losses(config),
        kl=_build_kl(config, model),
        alignment=_build_alignment(config, model, optimizer),
        optimizer=optimizer,
        ema=_build_ema(config),
        accumulation_steps=config.accumulation_steps,
        latent_noise=config.latent_noise,
        balancer_norm=config.balancer_norm,
        generator_update_every=config.generator_update_every,
        discriminator_update_every=config.discriminator_update_every,
        seed=config.seed,
        **adversarial,
    )


def build_model(config: ml_collections.ConfigDict) -> AudioVAE:
    """Build the model of `config.model` and trace it on the shape of a batch.

    Raises:
      ConfigError: see `build_recipe`.
    """
    model = _construct(AudioVAE, config.model, "config.model")

    def run(key, audio):
        return model.init_with_output(key, audio, deterministic=True)[0]

    _trace(run, "config.model", "AudioVAE", jax.random.key(0), _batch(config))
    return model


def build_discriminator(config: ml_collections.ConfigDict) -> nn.Module:
    """Build the discriminator and trace it on the shape of a batch.

    Raises:
      ConfigError: see `build_recipe`.
    """
    where = "config.discriminator"
    discriminator = resolve.build(config.discriminator, where)
    name = config.discriminator[resolve.TARGET]
    if not isinstance(discriminator, nn.Module):
        raise ConfigError(
            f"{where}.{resolve.TARGET}={name!r} gives a {type(discriminator).__name__}; "
            "a discriminator is a subclass of flax.linen.Module"
        )
    audio = _batch(config)

    def run(key, audio):
        variables = discriminator.init(key, audio)
        if set(variables) - {"params"}:
            raise TypeError(
                f"{name} has variables {sorted(set(variables) - {'params'})}; only params are trained and saved, "
                "so a discriminator must be a function of its params and the audio"
            )
        return discriminator.apply(variables, audio)

    output = _trace(run, where, name, jax.random.key(0), audio, check=lambda output: base.check_output(output, name))
    for i, logits in enumerate(output[0]):
        if not jnp.issubdtype(logits.dtype, jnp.floating):
            raise ConfigError(f"{where}: {name} returns logits[{i}] of dtype {logits.dtype}; they must be floating")
    return discriminator


def build_losses(config: ml_collections.ConfigDict) -> WeightedLosses:
    """Build the reconstruction losses and trace each on the shape of a batch.

    Raises:
      ConfigError: see `build_recipe`.
    """
    terms = []
    for name, section in config.losses.items():
        where = f"config.losses.{name}"
        if name in RESERVED_METRICS:
            raise ConfigError(f"{where}: this name is taken by one of the run's own metrics; choose another")
        fn = resolve.build(section, where, ignore=("weight",))
        target = section[resolve.TARGET]
        parameters = inspect.signature(fn).parameters
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for argument in ("prediction", "target"):
            if argument not in parameters and not takes_any:
                raise ConfigError(f"{where}: {target} must accept the keyword arguments prediction and target")

        def run(audio, fn=fn):
            return fn(prediction=audio, target=audio)

        def check(value, target=target):
            if getattr(value, "shape", None) != () or not jnp.issubdtype(value.dtype, jnp.floating):
                got = f"shape {value.shape} {value.dtype}" if hasattr(value, "shape") else f"a {type(value).__name__}"
                raise TypeError(f"{target} must return one floating-point scalar, but it returned {got}")

        _trace(run, where, target, _batch(config), check=check)
        terms.append((name, section.weight, fn))
    try:
        return WeightedLosses(tuple(terms))
    except ValueError as error:
        raise ConfigError(f"config.losses: {error}") from error


def example_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """Return the shape of one crop, `(1, T, C)`, for initialising the networks."""
    return (1, *batch_shape(config)[1:])


def batch_shape(config: ml_collections.ConfigDict) -> tuple[int, int, int]:
    """Return the shape of a batch of all devices, `(B, T, C)`."""
    return (config.batch_size, config.data.crop_length, config.data.channels)


def _build_optimizer(config, name, first_step=0):
    try:
        return Optimizer(num_steps=config.num_steps, first_step=first_step, **config[name])
    except ValueError as error:
        raise ConfigError(f"config.{name}.{error}") from error


def _build_model_optimizer(config, model):
    where = "config.optimizer.learning_rate_factors"
    optimizer = _build_optimizer(config, "optimizer")
    if not optimizer.learning_rate_factors:
        return optimizer
    paths = flax.traverse_util.flatten_dict(model.shapes()["params"])
    for pair in optimizer.learning_rate_factors:
        if not any(factor_of(path, (pair,)) == pair[1] for path in paths):
            top = ", ".join(sorted({"/".join(path[:2]) for path in paths}))
            raise ConfigError(f"{where} has {pair[0]!r}, which matches no parameter; the model has {top}")
    if all(factor_of(path, optimizer.learning_rate_factors) == 0 for path in paths):
        raise ConfigError(f"{where} freezes every parameter; leave some to train")
    return optimizer


def _build_ema(config):
    if not config.ema.decay:
        return None
    if config.optimizer.name == "schedule_free_adamw":
        raise ConfigError(
            f"config.ema.decay={config.ema.decay}: schedule_free_adamw averages the parameters itself; "
            "set config.ema.decay=0"
        )
    return _construct(Ema, config.ema, "config.ema")


def _build_kl(config, model):
    frame_rate = config.data.sample_rate / model.hop_length
    kl = _construct(KLTerm, {**config.kl, "frame_rate": frame_rate}, "config.kl")
    if model.posterior == "none" and not is_off(kl.weight):
        raise ConfigError(
            f"config.kl.weight={kl.weight}: a model with config.model.posterior=none has no KL divergence; "
            "set config.kl.weight=0"
        )
    shape = jax.ShapeDtypeStruct((1, 1, config.model.latent_dim), jnp.float32)
    _trace(kl, "config.kl", "KLTerm", shape, shape)
    return dataclasses.replace(kl, axis_name=AXIS)


def _build_alignment(config, model, optimizer):
    where, name, rate = "config.alignment", config.alignment[resolve.TARGET], config.data.sample_rate
    if name is None or is_off(config.alignment.weight):
        return None
    paths = flax.traverse_util.flatten_dict(model.shapes()["params"])
    factors = optimizer.learning_rate_factors
    if model.encoder_frozen or all(factor_of(path, factors) == 0 for path in paths if path[0] == "encoder"):
        raise ConfigError(
            f"{where}.{resolve.TARGET}={name!r} has no effect, since the encoder is frozen; leave it out, or train the "
            "encoder (config.model.encoder_frozen, config.optimizer.learning_rate_factors)"
        )
    teacher = resolve.resolve(name, where)
    if not callable(teacher):
        raise ConfigError(f"{where}.{resolve.TARGET}={name!r} is a {type(teacher).__name__}, not a function")

    def run(audio):
        if takes_batches(teacher):
            return teacher(audio, rate)
        silence = np.zeros(audio.shape[1:], np.float32)
        return np.stack([np.asarray(teacher(silence, rate))] * audio.shape[0])

    def check(features):
        shape = np.shape(features)
        if len(shape) != 3 or shape[0] != config.batch_size or shape[1] < 2:
            raise TypeError(
                f"its features have shape {shape}; they must be [{config.batch_size}, frames, D], with at least 2 "
                "frames of a crop"
            )

    shape = _trace(run, where, name, _batch(config), check=check).shape
    section = {**config.alignment, "teacher": teacher, "sample_rate": rate, "frames": shape[1], "size": shape[2]}
    return _construct(Alignment, section, where)


def _construct(cls, section, where):
    return resolve.build({**section, resolve.TARGET: f"{cls.__module__}.{cls.__name__}"}, where)


def _batch(config):
    return jax.ShapeDtypeStruct(batch_shape(config), jnp.float32)


def _trace(fn, where, name, *args, check=lambda output: None):
    """Return the shapes of the output of `fn` without computing it.

    Raises:
      ConfigError: `fn` or `check` raised an exception.
    """
    raw = []

    def traced(*args):
        raw.append(fn(*args))
        check(raw[-1])  # inside the trace, where the output still has the type that the user's code returned
        return raw[-1]

    try:
        return jax.eval_shape(traced, *args)
    except ConfigError:
        raise
    except Exception as error:
        what = str(error).split("\n")[0]
        raise ConfigError(f"{where}: trying {name} on a batch failed: {type(error).__name__}: {what}") from error


def discriminator_dtype(config: ml_collections.ConfigDict) -> str:
    """Return the discriminator's dtype, or "with its own dtype" if it sets none."""
    return config.discriminator.get("dtype", "with its own dtype")
