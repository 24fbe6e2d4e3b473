"""Resuming runs of the PyTorch system: moments, steps, settings, and a comparison with torch."""

import functools
import shutil
from pathlib import Path

import golden_configs as names
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from conftest import GOLDEN

from audiovae_jax.config import build, configuration
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import CheckpointError
from audiovae_jax.run import train, warm_start
from audiovae_jax.storage.bucket_path import write_json
from audiovae_jax.torch_io import layout, read_checkpoint, training
from audiovae_jax.torch_io.export import audio_vae_state_dict
from audiovae_jax.torch_io.files.writer import write_checkpoint
from audiovae_jax.training import step
from audiovae_jax.training.state import create_train_state
from configs import base

LIGHTNING = GOLDEN / "lightning.ckpt"


@pytest.fixture
def checkpoint():
    """A Lightning checkpoint without Lightning's own objects, so that it can be written again."""
    read = read_checkpoint(LIGHTNING)
    for name in ("optimizer", "scheduler"):
        del read["hyper_parameters"][name]
    return read


def _read(tmp_path, content):
    write_checkpoint(tmp_path / "x.ckpt", content)
    return training.read_training(tmp_path / "x.ckpt")


def _adopted(micro_config, path):
    config = ml_collections.ConfigDict(micro_config.to_dict(), convert_dict=True)
    config.init_from = str(path)
    config.num_steps = 6
    lines = warm_start.adopt_settings(config, {"num_steps", "init_from"}, Path("no workdir yet"))
    return configuration.finalize(config, base.get_config()), lines


@functools.cache
def _shapes(recipe, audio_shape):
    return jax.eval_shape(functools.partial(create_train_state, recipe, audio_shape))


def _state(config, path):
    recipe = build.build_recipe(config)
    shapes = _shapes(recipe, build.example_shape(config))
    fresh = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    notes = []
    return recipe, training.train_state(training.read_training(path), recipe, fresh, notes), notes


def test_steps_are_batches_and_the_halving_is_reported():
    imported = training.read_training(LIGHTNING)
    assert imported.step == 3
    assert any("global_step=6 counts the updates of both optimizers; 3 batches were seen" in n for n in imported.notes)


def test_the_steps_without_lightnings_loops(tmp_path, checkpoint):
    del checkpoint["loops"]
    assert _read(tmp_path, checkpoint).step == 3
    # A warm-up of ten batches without the discriminator.
    checkpoint["global_step"] = 16
    for state in checkpoint["optimizer_states"][0]["state"].values():
        state["step"] = np.array(13.0, np.float32)
    imported = _read(tmp_path, checkpoint)
    assert imported.step == 13
    assert imported.overrides["adversarial.warmup_steps"] == 10


@pytest.mark.slow
def test_both_moments_counts_and_weights_are_taken_over(micro_config):
    config, _ = _adopted(micro_config, LIGHTNING)
    _, state, notes = _state(config, LIGHTNING)
    theirs = read_checkpoint(LIGHTNING)
    assert int(state.step) == 3
    for prefix, params, opt_state, optimizer in zip(
        ("model.", "discriminator."),
        (state.params, state.discriminator_params),
        (state.opt_state, state.discriminator_opt_state),
        theirs["optimizer_states"],
        strict=True,
    ):
        assert int(optax.tree.get(opt_state, "count")) == 3
        keys = [k for k in theirs["state_dict"] if k.startswith(prefix) and not layout.is_constant(k)]
        number = {key.removeprefix(prefix): i for i, key in enumerate(keys)}
        for moment, name in (("mu", "exp_avg"), ("nu", "exp_avg_sq")):
            tree = optax.tree.get(opt_state, moment)
            assert jax.tree.structure(tree) == jax.tree.structure(params)
            for path, array in jax.tree_util.tree_leaves_with_path(tree):
                path = tuple(part.key for part in path)
                expected = optimizer["state"][number[layout.torch_key(path)]][name]
                np.testing.assert_array_equal(array, layout.from_torch(path, expected, array.shape))
            assert float(optax.tree.norm(tree)) > 0
    taken = "restored: step 3, params, latent_statistics, discriminator_params, opt_state, discriminator_opt_state"
    assert taken in notes


def test_settings_become_overrides_that_the_command_line_can_refuse(micro_config):
    config, lines = _adopted(micro_config, LIGHTNING)
    for key, value in names.MICRO_MODEL.items():
        assert config.model[key] == value
    for key in ("stft_filters", "n_ffts", "use_msd", "mpd_periods", "mpd_channels", "use_mel_stft", "mel_stft_n_mels"):
        assert config.discriminator[key] == names.MICRO_DISCRIMINATOR[key]
    assert config.optimizer.final_learning_rate == 1e-5
    assert config.discriminator_optimizer.learning_rate == 1e-4
    assert config.adversarial.warmup_steps == 0
    assert config.num_steps == 6  # given
    assert any(line.startswith("  --config.model.latent_dim=3  (the config had 4)") for line in lines)
    config = ml_collections.ConfigDict(micro_config.to_dict(), convert_dict=True)
    config.init_from = str(LIGHTNING)
    warm_start.adopt_settings(config, (), Path("no workdir yet"))
    assert config.num_steps == 100


def test_hyperparameters_are_found_in_sections_and_in_objects(tmp_path, checkpoint):
    checkpoint["hyper_parameters"] = {
        "adversarial_loss_calculator": {"adversarial_weight": 0.5, "warmup_steps": 7, "feature_matching_weight": 15.0},
        "loss_calculator": {"kl_weight": 0.25, "free_bits": 0.5},
        "kl": {"warmup_steps": 11},
        "warmup_steps": 2000,
        "discriminator_update_every": 2,
        "kl_weight": "not a number",
    }
    found = _read(tmp_path, checkpoint).overrides
    expected = {
        "adversarial.adversarial_weight": 0.5, "adversarial.warmup_steps": 7,
        "adversarial.feature_matching_weight": 15.0, "kl.weight": 0.25,
        "kl.warmup_steps": 11, "kl.free_bits": 0.5, "discriminator_update_every": 2,
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected


@pytest.mark.slow
def test_a_run_resumes_from_a_lightning_checkpoint(micro_config, tmp_path, capsys):
    gone = tmp_path / "old.ckpt"
    shutil.copy(LIGHTNING, gone)
    config, _ = _adopted(micro_config, gone)
    state = train.train(config, tmp_path / "run")
    assert int(state.step) == 6
    assert int(optax.tree.get(state.opt_state, "count")) == 6
    said = capsys.readouterr().out
    assert f"{gone}: restored: step 3" in said
    # The same command resumes in the same workdir, from its own checkpoint and without the file.
    again = ml_collections.ConfigDict(micro_config.to_dict(), convert_dict=True)
    again.init_from, again.num_steps = str(gone), 6
    gone.unlink()
    warm_start.adopt_settings(again, {"num_steps", "init_from"}, tmp_path / "run")
    train.train(configuration.finalize(again, base.get_config()), tmp_path / "run")
    assert "resuming from step 6" in capsys.readouterr().out


def test_bare_weights_start_at_step_0_with_fresh_optimizers(micro_config, tmp_path):
    state_dict = read_checkpoint(LIGHTNING)["state_dict"]
    write_checkpoint(tmp_path / "bare.pt", {k: v for k, v in state_dict.items() if k.startswith("model.")})
    config, _ = _adopted(micro_config, tmp_path / "bare.pt")
    assert config.use_adversarial  # the config's
    _, state, notes = _state(config, tmp_path / "bare.pt")
    assert int(state.step) == 0
    assert int(optax.tree.get(state.opt_state, "count")) == 0
    assert "opt_state keeps its initial value: there are no moments that fit" in notes
    assert "it contains no discriminator; ours keeps its initial values" in notes


def test_a_frozen_encoder_restores_the_decoders_moments(micro_config):
    config, _ = _adopted(micro_config, LIGHTNING)
    config.model.encoder_frozen = True
    _, state, _ = _state(config, LIGHTNING)
    assert list(optax.tree.get(state.opt_state, "mu")) == ["decoder"]
    assert int(optax.tree.get(state.opt_state, "count")) == 3


@pytest.mark.slow
def test_parameters_without_a_gradient_have_no_moments(micro_config, tmp_path, checkpoint):
    first = [i for i, k in enumerate(checkpoint["state_dict"]) if k.startswith("model.encoder.input_conv")]
    for i in first:
        del checkpoint["optimizer_states"][0]["state"][i]
    write_checkpoint(tmp_path / "x.ckpt", checkpoint)
    config, _ = _adopted(micro_config, tmp_path / "x.ckpt")
    _, state, _ = _state(config, tmp_path / "x.ckpt")
    mu = optax.tree.get(state.opt_state, "mu")
    assert float(optax.tree.norm(mu["encoder"].pop("input_conv"))) == 0
    assert float(optax.tree.norm(mu["encoder"])) > 0


@pytest.mark.slow
@pytest.mark.parametrize("listed", [True, False], ids=["without gradients", "not in the optimizer"])
def test_an_encoder_that_was_never_updated_is_frozen(micro_config, tmp_path, checkpoint, listed):
    optimizer = checkpoint["optimizer_states"][0]
    keys = [k for k in checkpoint["state_dict"] if k.startswith("model.")]
    kept = [i for i, k in enumerate(keys) if not k.startswith("model.encoder.")]
    if listed:
        optimizer["state"] = {i: optimizer["state"][i] for i in kept if i in optimizer["state"]}
    else:
        optimizer["state"] = {new: optimizer["state"][i] for new, i in enumerate(kept) if i in optimizer["state"]}
        optimizer["param_groups"][0]["params"] = list(range(len(kept)))
    write_checkpoint(tmp_path / "x.ckpt", checkpoint)
    config, _ = _adopted(micro_config, tmp_path / "x.ckpt")
    assert config.model.encoder_frozen
    _, state, _ = _state(config, tmp_path / "x.ckpt")
    assert list(optax.tree.get(state.opt_state, "mu")) == ["decoder"]
    assert any("never updated the encoder" in note for note in training.read_training(tmp_path / "x.ckpt").notes)


def test_a_checkpoint_in_the_middle_of_an_epoch_counts_its_batch(tmp_path, checkpoint):
    checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"] = {"processed": 4, "completed": 3}
    checkpoint["global_step"] = 8
    assert _read(tmp_path, checkpoint).step == 4


def test_without_loops_and_optimizers_an_adversarial_step_is_halved(tmp_path, checkpoint):
    for key in ("loops", "optimizer_states"):
        del checkpoint[key]
    imported = _read(tmp_path, checkpoint)
    assert imported.step == 3
    assert any("3 batches were seen" in note for note in imported.notes)
    checkpoint["global_step"] = 2**40
    with pytest.raises(CheckpointError, match="its global_step is 1099511627776, which is not a valid number of steps"):
        _read(tmp_path, checkpoint)


def test_other_schedules_are_reported(tmp_path, checkpoint):
    checkpoint["lr_schedulers"][0] |= {"T_max": 50, "last_epoch": 1, "_step_count": 2}
    imported = _read(tmp_path, checkpoint)
    assert imported.step == 3
    checkpoint["lr_schedulers"][0] |= {"last_epoch": 40}
    imported = _read(tmp_path, checkpoint)
    assert "num_steps" not in imported.overrides
    assert any("its schedule is at 40 at batch 3, perhaps in epochs" in note for note in imported.notes)
    checkpoint["lr_schedulers"] = [{"gamma": 0.99, "base_lrs": [1e-3], "last_epoch": 3}]
    imported = _read(tmp_path, checkpoint)
    assert imported.overrides["optimizer.learning_rate"] == 1e-3
    assert any("the schedule of its optimizer is not a cosine" in note for note in imported.notes)


def test_rates_are_found_in_hyperparameters_where_there_is_no_optimizer(tmp_path, checkpoint):
    del checkpoint["optimizer_states"]
    checkpoint["hyper_parameters"] |= {"discriminator_lr": 3e-4, "optimizer": {"lr": 5e-5, "betas": [0.8, 0.9]}}
    found = _read(tmp_path, checkpoint).overrides
    assert found["discriminator_optimizer.learning_rate"] == 3e-4
    assert (found["optimizer.learning_rate"], found["optimizer.b1"], found["optimizer.b2"]) == (5e-5, 0.8, 0.9)


def test_a_discriminator_of_another_kind_leaves_the_model_usable(micro_config, tmp_path, checkpoint):
    state = checkpoint["state_dict"]
    prefix = "discriminator.mpd."
    alone = {k.replace(prefix, "discriminator."): v for k, v in state.items() if k.startswith(prefix)}
    checkpoint["state_dict"] = {k: v for k, v in state.items() if k.startswith("model.")} | alone
    del checkpoint["optimizer_states"][1]
    write_checkpoint(tmp_path / "x.ckpt", checkpoint)
    imported = training.read_training(tmp_path / "x.ckpt")
    assert any("the discriminator's arguments cannot be inferred" in note for note in imported.notes)
    section = {
        "_target_": "audiovae_jax.discriminators.MultiPeriodDiscriminator",
        "periods": (2,),
        "channels": (2, 2, 2),
    }
    micro_config.discriminator = ml_collections.ConfigDict(section)
    config, _ = _adopted(micro_config, tmp_path / "x.ckpt")
    _, state, _ = _state(config, tmp_path / "x.ckpt")
    bias = state.discriminator_params["discriminators_0"]["conv_post"]["bias"]
    np.testing.assert_array_equal(bias, alone["discriminator.discriminators.0.conv_post.bias"])


@pytest.mark.slow
def test_another_architecture_is_refused(micro_config):
    config, _ = _adopted(micro_config, LIGHTNING)
    config.model.latent_dim = 5
    with pytest.raises(CheckpointError, match="its model has latent_dim=3, but config.model.latent_dim is 5"):
        _state(config, LIGHTNING)


def test_optimizers_other_than_adamw_are_reported_and_ignored(tmp_path, checkpoint):
    state = checkpoint["optimizer_states"][0]
    exp_avg = state["state"][3]["exp_avg"]
    state["state"][3]["exp_avg"] = np.zeros(7, np.float32)
    said = "the state of the model's optimizer is not AdamW's over its parameters"
    imported = _read(tmp_path, checkpoint)
    assert imported.moments is None
    assert imported.discriminator_moments.step == 3
    assert any(said in note for note in imported.notes)
    state["state"][3]["exp_avg"] = exp_avg
    # With two groups, the numbers of parameters are ambiguous unless the groups have names.
    group, numbers = state["param_groups"][0], state["param_groups"][0]["params"]
    halves = [numbers[::2], numbers[1::2]]
    keys = [k for k in checkpoint["state_dict"] if k.startswith("model.")]
    state["param_groups"] = [{**group, "params": half} for half in halves]
    assert _read(tmp_path, checkpoint).moments is None
    for group, half in zip(state["param_groups"], halves, strict=True):
        group["param_names"] = [keys[i] for i in half]
    imported = _read(tmp_path, checkpoint)
    np.testing.assert_array_equal(imported.moments.exp_avg[keys[3].removeprefix("model.")], exp_avg)
    for group in state["param_groups"]:
        del group["params"]
    assert any(said in note for note in _read(tmp_path, checkpoint).notes)


@pytest.mark.slow
def test_moments_of_folded_weights_are_not_restored(micro_config, tmp_path, checkpoint):
    """The optimizer's parameters were the folded weights, so its moments do not fit gain and direction."""
    weights = checkpoint["state_dict"]
    state = checkpoint["optimizer_states"][0]
    keys = [k for k in weights if k.startswith("model.")]
    kept = [i for i, key in enumerate(keys) if not key.endswith("weight_g")]
    folded = {keys[i].replace("weight_v", "weight"): weights[keys[i]] for i in kept}
    state["state"] = {new: state["state"][i] for new, i in enumerate(kept) if i in state["state"]}
    state["param_groups"][0]["params"] = list(range(len(kept)))
    others = {k: v for k, v in weights.items() if not k.startswith("model.")}
    checkpoint["state_dict"] = folded | others
    write_checkpoint(tmp_path / "x.ckpt", checkpoint)
    config, _ = _adopted(micro_config, tmp_path / "x.ckpt")
    _, state, notes = _state(config, tmp_path / "x.ckpt")
    assert int(optax.tree.get(state.opt_state, "count")) == 0
    assert "opt_state keeps its initial value: the moments belong to folded weights" in notes


def _continue_here(config, path, audio, steps, monkeypatch):
    monkeypatch.setattr(step, "latent_noise", lambda recipe, _, x: jnp.zeros(_noise_shape(recipe, x)))
    recipe, state, _ = _state(config, path)
    devices = mesh.make_mesh(jax.devices()[:1])
    train_step = mesh.map_devices(
        functools.partial(step.train_step, recipe=recipe, adversarial=True),
        devices,
        (jax.P(), jax.P()),
        donate_argnums=0,
    )
    state = jax.device_put(state, mesh.replicated(devices))
    losses = []
    for batch in audio[:steps]:
        state, metrics = train_step(state, mesh.place_batch(devices, np.moveaxis(batch, 1, -1)))
        losses.append((float(metrics["total_g_loss"]), float(metrics["d_loss"])))
    return state, losses


def _noise_shape(recipe, audio):
    return (audio.shape[0], recipe.model.frames(audio.shape[1]), recipe.model.latent_dim)


def _check_against_torch(config, path, model_config, discriminator_config, length, monkeypatch):
    torch = pytest.importorskip("torch")
    import torch_reference as ref
    import torch_training

    rng = np.random.default_rng(0)
    audio = (0.3 * rng.standard_normal((5, 2, 2, length))).astype(np.float32)
    stft = config.losses.stft
    theirs = torch_training.Run(
        ref.AudioVAE(**model_config),
        ref.EnCodecDiscriminator(**discriminator_config),
        lambda prediction, target: (
            ref.sum_and_difference_stft(
                prediction, target, ffts=stft.fft_sizes, hops=None, wins=None, w_sc=0, w_lin=1, weighted=44100
            )
            + ref.multi_scale_mel(prediction, target, ffts=config.losses.mel.fft_sizes, n_mels=config.losses.mel.n_mels)
        ),
        num_steps=config.num_steps,
        rates=tuple(
            (o.learning_rate, o.final_learning_rate) for o in (config.optimizer, config.discriminator_optimizer)
        ),
    )
    theirs.load(torch.load(path, weights_only=False))  # our file, or the reference's
    before = {k: v.clone() for k, v in theirs.model.state_dict().items()}
    losses = [theirs.step(torch.tensor(batch)) for batch in audio]
    config.kl.weight = 0.0
    config.batch_size = 2
    state, ours_losses = _continue_here(config, path, audio, 5, monkeypatch)
    np.testing.assert_allclose(ours_losses[0], losses[0], rtol=1e-6)  # before any update of ours
    np.testing.assert_allclose(ours_losses, losses, rtol=1e-5)
    ours = audio_vae_state_dict(state.variables)
    errors, moved = {}, {}
    for key, tensor in theirs.model.state_dict().items():
        scale = float(tensor.abs().max())
        errors[key] = float(np.abs(ours[key] - tensor.numpy()).max()) / scale
        moved[key] = float((tensor - before[key]).abs().max()) / scale
    discriminator = {k: v.numpy() for k, v in theirs.discriminator.state_dict().items()}
    for path, array in jax.tree_util.tree_leaves_with_path(state.discriminator_params):
        path = tuple(part.key for part in path)
        key = layout.torch_key(path)
        tensor = layout.from_torch(path, discriminator[key], array.shape)
        errors[f"discriminator.{key}"] = float(np.abs(np.asarray(array) - tensor).max() / np.abs(tensor).max())
    worst = max(errors, key=errors.get)
    print(f"\n| continued 5 steps | {worst} {errors[worst]:.1e} | moved by up to {max(moved.values()):.1e} |")
    assert max(moved.values()) > 1e-3  # far more than the bound
    assert errors[worst] < 1e-4, worst


def test_five_steps_on_are_torchs_five_steps(micro_config, monkeypatch):
    pytest.importorskip("torch")
    config, _ = _adopted(micro_config, LIGHTNING)
    config.num_steps = 100
    _check_against_torch(config, LIGHTNING, names.MICRO_MODEL, names.MICRO_DISCRIMINATOR, 1024, monkeypatch)


def test_a_key_given_once_is_not_kept_in_silence(micro_config, tmp_path):
    config, _ = _adopted(micro_config, LIGHTNING)
    theirs = config.kl.weight
    config.kl.weight = 0.5  # given in the first command
    write_json(tmp_path / "config.json", config.to_dict())
    again = ml_collections.ConfigDict(micro_config.to_dict(), convert_dict=True)
    again.init_from = str(LIGHTNING)
    warm_start.adopt_settings(again, {"init_from"}, tmp_path)
    assert again.kl.weight == theirs
    # Without the file, the settings come from the workdir. The message reports this.
    again.init_from = str(tmp_path / "gone.ckpt")
    config.init_from = again.init_from
    write_json(tmp_path / "config.json", config.to_dict())
    lines = warm_start.adopt_settings(again, {"init_from"}, tmp_path)
    assert again.kl.weight == 0.5
    assert f"settings of the run in {tmp_path}, since {again.init_from} can no longer be read" in lines[0]
    with pytest.raises(CheckpointError, match="there is no such file"):
        warm_start.adopt_settings(again, {"init_from"}, tmp_path / "another workdir")
