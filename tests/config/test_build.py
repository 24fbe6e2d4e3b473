"""Custom parts, named by a dotted path: the contract and its errors."""

import jax
import ml_collections
import numpy as np
import pytest

from audiovae_jax.config import build
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import ConfigError
from audiovae_jax.training import program
from audiovae_jax.training.state import create_train_state
from configs import oobleck

PARTS = """
import flax.linen as nn
import jax.numpy as jnp

class Disc(nn.Module):
    width: int
    def setup(self):
        self.conv = nn.Conv(self.width, (5,), strides=4)
    def __call__(self, audio):
        x = self.conv(audio)
        return [x[..., :1]], [[x]]

class OneArray(Disc):
    def __call__(self, audio):
        return self.conv(audio)

class FlatMaps(Disc):
    def __call__(self, audio):
        x = self.conv(audio)
        return [x], [x]

class NoMaps(Disc):
    def __call__(self, audio):
        return [self.conv(audio)], [[]]

class Stateful(Disc):
    @nn.compact
    def __call__(self, audio):
        x = nn.BatchNorm(use_running_average=True)(audio)
        return [x], [[x]]

class NotAModule:
    pass

def my_loss(*, prediction, target, power=2):
    return jnp.mean(jnp.abs(prediction - target) ** power)

def per_item(*, prediction, target):
    return jnp.mean(jnp.abs(prediction - target), axis=(1, 2))

def wrong_names(*, x, y):
    return jnp.mean(x - y)
"""


def test_oobleck_has_stable_audios_schedule_and_average():
    config = oobleck.get_config()
    config.model.base_channels = config.discriminator.stft_filters = 2
    recipe = build.build_recipe(config)
    steps = np.arange(300_000)
    theirs = (1 - 0.999 ** (steps + 1)) * (1 + steps / 200_000) ** -0.5  # InverseLR of stable-audio-tools
    for optimizer, peak in ((recipe.optimizer, 1.5e-4), (recipe.discriminator_optimizer, 3e-4)):
        rates = np.asarray(optimizer.learning_rate_at(steps), np.float64)
        np.testing.assert_allclose(rates[10_000:], peak * theirs[10_000:], rtol=1e-4)
        np.testing.assert_allclose(rates[:10_000].sum(), peak * theirs[:10_000].sum(), rtol=1e-2)
        assert optimizer.clip_norm == 0
    averages = np.asarray(recipe.ema.decay_at(steps), np.float64)
    np.testing.assert_allclose(averages, np.minimum(1 - (1.0 + steps) ** -0.75, 0.9999), atol=1e-6)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    (tmp_path / "own_parts_for_test.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    return "own_parts_for_test"


def _section(**keys):
    return ml_collections.ConfigDict(keys)


def test_a_users_discriminator_and_loss_are_built(micro_config, parts):
    micro_config.discriminator = _section(_target_=f"{parts}.Disc", width=3)
    micro_config.losses.mine = _section(_target_=f"{parts}.my_loss", weight=0.5, power=1)
    recipe = build.build_recipe(micro_config)
    assert recipe.discriminator.width == 3
    assert [(name, weight) for name, weight, _ in recipe.losses.terms] == [("mel", 1.0), ("mine", 0.5), ("stft", 1.0)]


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("Disc", {"widht": 3}, "has no argument 'widht'; did you mean 'width'"),
        ("Disc", {}, "needs the argument 'width'"),
        ("Disc", {"width": "three"}, "trying own_parts_for_test.Disc on a batch failed: TypeError"),
        ("OneArray", {"width": 3}, r"must return \(logits: list of arrays.*but it returned one array of shape"),
        ("FlatMaps", {"width": 3}, r"its feature_maps are a list of 1 \(array\)"),
        ("NoMaps", {"width": 3}, "contain no array, so there is nothing to match"),
        ("Stateful", {"width": 3}, r"has variables \['batch_stats'\]"),
        ("NotAModule", {}, "a discriminator is a subclass of flax.linen.Module"),
    ],
)
def test_a_discriminator_that_breaks_the_contract_is_refused(micro_config, parts, name, keys, message):
    micro_config.discriminator = _section(_target_=f"{parts}.{name}", **keys)
    with pytest.raises(ConfigError, match=message) as error:
        build.build_discriminator(micro_config)
    assert "config.discriminator" in str(error.value)


@pytest.mark.parametrize(
    ("name", "keys", "message"),
    [
        ("my_loss", {"powr": 1}, "has no argument 'powr'; did you mean 'power'"),
        ("my_loss", {"power": "two"}, "trying own_parts_for_test.my_loss on a batch failed: TypeError"),
        ("per_item", {}, r"must return one floating-point scalar, but it returned shape \(4,\)"),
        ("wrong_names", {}, "must accept the keyword arguments prediction and target"),
    ],
)
def test_a_loss_that_breaks_the_contract_is_refused(micro_config, parts, name, keys, message):
    micro_config.losses.mine = _section(_target_=f"{parts}.{name}", weight=1.0, **keys)
    with pytest.raises(ConfigError, match=message) as error:
        build.build_losses(micro_config)
    assert "config.losses.mine" in str(error.value)


def test_the_model_is_tried_too(micro_config):
    micro_config.model.dtype = "str"
    with pytest.raises(ConfigError, match="config.model: trying AudioVAE on a batch failed: TypeError: .*"):
        build.build_recipe(micro_config)
    micro_config.model.dtype = "bf16"
    with pytest.raises(ConfigError, match="config.model: .*dtype='bf16' is not a dtype; use .*bfloat16"):
        build.build_recipe(micro_config)


def test_a_kl_weight_without_posterior_is_refused(micro_config):
    micro_config.model.posterior = "none"
    with pytest.raises(ConfigError, match=r"config.model.posterior=none has no KL divergence; set config.kl.weight=0"):
        build.build_recipe(micro_config)
    micro_config.kl.weight = 0.0
    assert build.build_recipe(micro_config).model.posterior == "none"


def _blocks(audio, sample_rate):
    return audio.reshape(16, -1)


def _blocks_of_batches(audio, sample_rate):
    return audio.reshape(audio.shape[0], 16, -1)


_blocks_of_batches.takes_batches = True


@pytest.mark.parametrize("name", ["_blocks", "_blocks_of_batches"])
def test_an_alignment_knows_the_shape_of_its_teachers_features(micro_config, name):
    micro_config.alignment._target_ = f"{__name__}.{name}"
    term = build.build_recipe(micro_config).alignment
    assert (term.frames, term.size, term.sample_rate, term.weight) == (16, 128, 44100, 0.1)
    micro_config.alignment.weight = 0.0
    assert build.build_recipe(micro_config).alignment is None


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "_mean",
            {},
            r"_mean on a batch failed: TypeError: its features have shape \(4, 2\); they must be \[4,",
        ),
        ("_one", {}, r"its features have shape \(4, 1, 2\); they must be .* at least 2 frames of a crop"),
        ("_broken", {}, "_broken on a batch failed: KeyError"),
        ("__name__", {}, "is a str, not a function"),
        ("_blocks", {"alignment.distance_margin": -1.0}, "distance_margin=-1.0 must not be negative"),
        ("_blocks", {"model.encoder_frozen": True}, "has no effect, since the encoder is frozen; leave it out"),
        ("_blocks", {"optimizer.learning_rate_factors": (("encoder", 0.0),)}, "has no effect, since the encoder"),
    ],
)
def test_an_alignment_without_use_or_features_is_refused(micro_config, name, changes, message):
    micro_config.alignment._target_ = f"{__name__}.{name}"
    micro_config.update_from_flattened_dict(changes)
    with pytest.raises(ConfigError, match=message) as error:
        build.build_recipe(micro_config)
    assert "config.alignment" in str(error.value)


def _mean(audio, sample_rate):
    return audio.mean(axis=0)


def _one(audio, sample_rate):
    return audio.mean(axis=0, keepdims=True)


def _broken(audio, sample_rate):
    return {}["weights"]


def test_a_loss_cannot_have_the_name_of_a_metric(micro_config):
    micro_config.losses.kl_loss = _section(_target_="audiovae_jax.losses.waveform_l1", weight=1.0)
    with pytest.raises(ConfigError, match="config.losses.kl_loss: this name is taken by one of the run's own metrics"):
        build.build_recipe(micro_config)


def test_a_misspelt_key_of_an_unused_discriminator_is_refused(micro_config):
    micro_config.use_adversarial = False
    micro_config.discriminator.use_msdd = True
    with pytest.raises(ConfigError, match="did you mean 'use_msd'"):
        build.build_recipe(micro_config)


def test_a_stereo_loss_on_mono_audio_names_the_remedy(micro_config):
    micro_config.data.channels = micro_config.model.in_channels = 1
    with pytest.raises(ConfigError, match="config.losses.stft: .*for mono use multi_resolution_stft"):
        build.build_losses(micro_config)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("optimizer.clip_norm", -1.0, "config.optimizer.clip_norm=-1.0 must not be negative"),
        ("optimizer.learning_rate", 0.0, "config.optimizer.learning_rate=0.0 must be above 0"),
        ("optimizer.final_learning_rate", -1e-5, "final_learning_rate=-1e-05 must not be negative"),
        ("optimizer.weight_decay", -0.1, "config.optimizer.weight_decay=-0.1 must not be negative"),
        ("optimizer.warmup_steps", -1, "config.optimizer.warmup_steps=-1 must not be negative"),
        ("discriminator_optimizer.b1", 1.0, "config.discriminator_optimizer.b1=1.0 must be below 1"),
        ("discriminator_optimizer.eps", 0.0, "config.discriminator_optimizer.eps=0.0 must be above 0"),
        ("optimizer.b2", float("nan"), "config.optimizer.b2=nan must be a finite number"),
        ("kl.weight", -1.0, "config.kl: .* weight=-1.0 must not be negative"),
        ("kl.warmup_steps", -5, "config.kl: .* warmup_steps=-5 must not be negative"),
        ("kl.free_bits", -0.5, "config.kl: .* free_bits=-0.5 must not be negative"),
        ("kl.target_bits_per_second", -1.0, "config.kl: .* target_bits_per_second=-1.0 must be above 0"),
        ("kl.cycle_steps", 10, "config.kl: .* warmup_steps=5000 must be below 11"),
        ("adversarial.loss", "wgan", "config.adversarial: .* loss='wgan' is unknown; use one of hinge"),
        ("adversarial.feature_matching_weight", float("inf"), "feature_matching_weight=inf must be a finite number"),
        ("losses.mel.weight", -1.0, "config.losses: the weight of mel=-1.0 must not be negative"),
        ("losses.mel.w_log_mag", -1.0, "config.losses.mel: .* w_log_mag=-1.0 must not be negative"),
        ("losses.stft.w_diff", -1.0, "config.losses.stft: .* w_diff=-1.0 must not be negative"),
        ("losses.stft.w_lin_mag", float("nan"), "config.losses.stft: .* w_lin_mag=nan must be a finite number"),
        ("losses.stft.hop_sizes", (0,), "config.losses.stft: .* with hop 0 and window 64"),
    ],
)
def test_numbers_that_turn_or_break_the_training_are_refused(micro_config, key, value, message):
    section, _, name = key.rpartition(".")
    at = micro_config
    for part in section.split("."):
        at = at[part]
    at[name] = value
    with pytest.raises(ConfigError, match=message):
        build.build_recipe(micro_config)


@pytest.mark.slow
def test_every_objective_trains(micro_config):
    config = micro_config
    config.adversarial.loss, config.adversarial.ramp_steps = "relativistic", 10
    config.kl.target_bits_per_second, config.kl.weight = 30_000.0, 1.0
    config.kl.cycle_steps, config.kl.warmup_steps = 4, 2
    weighted = {"perceptual_weighting": "k", "w_log1p_mag": 1.0}
    config.losses.stft = _section(**{**config.losses.stft.to_dict(), **weighted})
    for name, options in (("phase_derivatives", {"fft_sizes": (64,)}), ("stereo_correlation", {"n_fft": 512})):
        config.losses[name] = _section(_target_=f"audiovae_jax.losses.{name}", weight=0.1, **options)
    config.discriminator.use_mpd = False
    config.discriminator.use_cqt = True
    config.discriminator.cqt_filters = 2
    config.discriminator.cqt_octaves, config.discriminator.cqt_f_min = 3, 1000.0
    config.discriminator.cqt_bins_per_octave, config.discriminator.cqt_hop_lengths = (6,), (64,)
    recipe = build.build_recipe(config)
    assert recipe.kl.frame_rate == 44100 / 8
    devices = mesh.make_mesh(jax.devices()[:1])
    step, scalars = program.map_step(recipe, devices, True), program.place_scalars(recipe, devices)
    initial = jax.device_get(create_train_state(recipe, (1, 1024, 2)))
    state = mesh.replicate(initial, mesh.replicated(devices))
    audio = np.random.default_rng(0).uniform(-0.5, 0.5, (4, 1024, 2)).astype(np.float32)
    history = []
    for _ in range(5):
        state, metrics = step(state, mesh.place_batch(devices, audio), scalars)
        history.append(jax.device_get(metrics))
    assert all(np.isfinite(value) for metrics in history for value in metrics.values())
    assert not any(metrics["g_skipped"] or metrics["d_skipped"] for metrics in history)
    assert [metrics["kl_weight"] for metrics in history] == pytest.approx([0, 0.5, 1, 1, 0])
    assert all(metrics["d_real_acc"] == metrics["d_fake_acc"] for metrics in history)
    assert history[-1]["reconstruction_loss"] < history[0]["reconstruction_loss"]
    # Every parameter was updated but the last biases of the discriminator, which cancel in differences of logits.
    for old, new in ((initial.params, state.params), (initial.discriminator_params, state.discriminator_params)):
        for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
            name = jax.tree_util.keystr(path)
            assert (before != np.asarray(after)).any() != name.endswith("['conv_post']['bias']"), name


def test_a_discriminators_rate_warms_up_from_where_it_joins(micro_config):
    micro_config.num_steps, micro_config.adversarial.warmup_steps = 1000, 100
    micro_config.optimizer.warmup_steps = micro_config.discriminator_optimizer.warmup_steps = 10
    recipe = build.build_recipe(micro_config)
    full = [float(section.learning_rate) for section in (micro_config.optimizer, micro_config.discriminator_optimizer)]
    for step, ours, theirs in ((0, 0.1, 0.0), (9, 1.0, 0.0), (100, 1.0, 0.1), (109, 1.0, 1.0)):
        rates = [float(each.learning_rate_at(step)) for each in (recipe.optimizer, recipe.discriminator_optimizer)]
        assert rates == pytest.approx([full[0] * ours, full[1] * theirs], rel=1e-5), step


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimizer": {"learning_rate_factors": (("encode", 0.0),)}}, "has 'encode', which matches no parameter"),
        ({"optimizer": {"learning_rate_factors": (("*", 0.0),)}}, "freezes every parameter; leave some to train"),
        ({"ema": {"decay": 1.5}}, "decay=1.5 must be below 1"),
        ({"ema": {"decay": 0.9}, "optimizer": {"name": "schedule_free_adamw"}}, "averages the parameters itself"),
        ({"optimizer": {"schedule": "inverse_sqrt"}}, "config.optimizer.schedule='inverse_sqrt' needs decay_steps"),
    ],
)
def test_averages_and_factors_that_cannot_be_are_refused(micro_config, change, message):
    micro_config.update(change)
    micro_config.use_adversarial = False
    with pytest.raises(ConfigError, match=message):
        build.build_recipe(micro_config)


def test_a_recipe_of_a_frozen_encoder_trains_the_decoder_only(micro_config):
    micro_config.model.encoder_frozen = True
    micro_config.use_adversarial = False
    micro_config.optimizer.learning_rate_factors = (("decoder/final_conv", 0.5),)
    recipe = build.build_recipe(micro_config)
    assert recipe.optimizer.learning_rate_factors == (("encoder", 0.0), ("decoder/final_conv", 0.5))
