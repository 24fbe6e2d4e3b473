"""A small training step, shared by the tests of its parts."""

import dataclasses
import functools

import flax.linen as nn
import jax
import numpy as np

from audiovae_jax import AdversarialLossCalculator, AudioVAE, losses
from audiovae_jax.distributed import mesh
from audiovae_jax.losses import WeightedLosses
from audiovae_jax.losses.kl import KLTerm
from audiovae_jax.training import program, step
from audiovae_jax.training.optimizer import Optimizer
from audiovae_jax.training.state import create_state

SHAPE = (1, 256, 2)
ADAMW = {"final_learning_rate": 1e-5, "b1": 0.9, "b2": 0.999, "eps": 1e-8, "weight_decay": 1e-4, "clip_norm": 1.0}


class SmallDiscriminator(nn.Module):
    @nn.compact
    def __call__(self, audio):
        x = nn.leaky_relu(nn.Conv(4, (7,), strides=3)(audio))
        return [nn.Conv(1, (3,))(x)], [[x]]


def make_recipe(**changes) -> step.Recipe:
    recipe = step.Recipe(
        model=AudioVAE(base_channels=4, channel_mults=(1, 2), strides=(2, 4), latent_dim=4, dilations=(1,)),
        losses=WeightedLosses((("l1", 100.0, losses.waveform_l1),)),
        kl=KLTerm(weight=1e-3, warmup_steps=10),
        optimizer=Optimizer(num_steps=100, learning_rate=1e-3, **ADAMW),
        discriminator=SmallDiscriminator(),
        adversarial=AdversarialLossCalculator(),
        discriminator_optimizer=Optimizer(num_steps=100, learning_rate=1e-3, **ADAMW),
    )
    return dataclasses.replace(recipe, **changes)


def batch(seed=0, size=4):
    return np.random.default_rng(seed).standard_normal((size, *SHAPE[1:])).astype(np.float32)


@functools.cache
def _drawn(recipe):
    return jax.device_get(create_state(recipe, mesh.make_mesh(jax.devices()[:1]), SHAPE))


@functools.cache
def _train_step(recipe, devices, adversarial):
    return program.map_step(recipe, devices, adversarial)


def initial_state(recipe, devices=None):
    devices = devices or mesh.make_mesh(jax.devices()[:1])
    return jax.device_put(_drawn(recipe), mesh.replicated(devices), may_alias=False)  # a step may donate it


def run(recipe, steps=1, devices=1, adversarial=True):
    """Return the final state and each step's metrics."""
    devices = mesh.make_mesh(jax.devices()[:devices])
    train_step, scalars = _train_step(recipe, devices, adversarial), program.place_scalars(recipe, devices)
    state = initial_state(recipe, devices)
    history = []
    for i in range(steps):
        state, metrics = train_step(state, mesh.place_batch(devices, batch(i)), scalars)
        history.append(jax.device_get(metrics))
    return jax.device_get(state), history


def assert_trees_close(a, b, rtol):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
        difference = np.abs(np.asarray(x, np.float64) - y).max() if np.size(x) else 0.0
        assert difference <= rtol * max(np.abs(y).max(), 1e-3), (jax.tree_util.keystr(path), difference)


def assert_trees_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def changed(a, b) -> bool:
    return any((x != y).any() for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
