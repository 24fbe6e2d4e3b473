"""Warm starts from workdirs, saved models and torch files: complete, or only the weights."""

import functools
import json
import shutil

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest
from conftest import GOLDEN

from audiovae_jax import AudioVAE, load_model, load_training_state, save_model
from audiovae_jax.config import build, configuration
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import CheckpointError, ConfigError
from audiovae_jax.models.audio_vae import CONFIG_KEYS
from audiovae_jax.persistence import conversion, saved_model, step_folders
from audiovae_jax.persistence.checkpoint import Checkpoints
from audiovae_jax.run import start, train, warm_start
from audiovae_jax.run.validation import Validation
from audiovae_jax.torch_io import training
from audiovae_jax.training import compilation
from audiovae_jax.training.state import create_train_state

LIGHTNING = GOLDEN / "lightning.ckpt"


class OwnDiscriminator(nn.Module):
    """A custom discriminator; `power` changes its output, but no shape."""

    power: float = 1.0
    remat: bool = False

    @nn.compact
    def __call__(self, audio):
        x = nn.Conv(2, (3,))(jax.numpy.abs(audio) ** self.power)
        return [x], [[x]]


@pytest.fixture
def calibrated(trained_run, tmp_path):
    """A saved model of the trained run, with statistics as `calibrate_latents` sets them."""
    mean, std = np.arange(4, dtype=np.float32), np.full(4, 2.0, np.float32)
    loaded = saved_model.open_model(trained_run[0] / "checkpoints" / "2")
    loaded.variables["latent_statistics"] = {"latent_mean": mean, "latent_std": std}
    saved_model.save_loaded(loaded, tmp_path / "calibrated")
    return tmp_path / "calibrated"


_known = {}


def _traced(config):
    """Return the recipe and the shapes of a state. Cached, since tracing takes a second."""
    sections = (config.model, config.discriminator, config.ema, config.alignment)
    key = "".join(section.to_json() for section in sections)
    if key not in _known:
        recipe = build.build_recipe(config)
        create = functools.partial(create_train_state, recipe, build.example_shape(config))
        _known[key] = recipe, jax.eval_shape(create)
    return _known[key]


def _take_over(config, path, **changes):
    """Return `(state, the fresh state of zeros, the messages)`."""
    config.init_from = str(path)
    config.update(changes)
    recipe, shapes = _traced(config)
    fresh = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
    said = []
    state = warm_start.take_over(config, recipe, fresh, mesh.replicated(mesh.make_mesh()), said.append)
    return state, fresh, "\n".join(said)


def _assert_same(tree, other):
    for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path))


def test_a_run_starts_from_a_calibrated_model(micro_config, trained_run, calibrated):
    state, fresh, said = _take_over(micro_config, calibrated)
    _assert_same(state.params, trained_run[2].params)
    np.testing.assert_array_equal(state.latent_statistics["latent_mean"], np.arange(4))
    np.testing.assert_array_equal(state.latent_statistics["latent_std"], np.full(4, 2))
    assert int(state.step) == 2
    _assert_same(state.opt_state, fresh.opt_state)
    assert f"config.init_from={calibrated}: opt_state is missing, and keeps its initial value" in said
    assert f"restored from {calibrated}: step 2; params, latent_statistics" in said


@pytest.mark.slow
def test_optional_parts_of_a_saved_model_are_restored_too(micro_config, trained_run, tmp_path):
    workdir, _, trained = trained_run
    model, variables = load_model(workdir, step=2)
    more = {"optimizer_state": trained.opt_state, "discriminator": build.build_discriminator(micro_config)}
    more["discriminator_params"] = trained.discriminator_params
    save_model(model, variables, tmp_path / "saved", sample_rate=48000, **more)
    state, fresh, said = _take_over(micro_config, tmp_path / "saved")
    _assert_same((state.params, state.opt_state), (trained.params, trained.opt_state))
    _assert_same(state.discriminator_params, trained.discriminator_params)
    _assert_same(state.discriminator_opt_state, fresh.discriminator_opt_state)
    assert int(state.step) == 0  # it contains no step
    assert "saved was trained at 48000 Hz, but config.data.sample_rate is 44100" in said
    # From a run with another discriminator, only the model is restored.
    state, _, said = _take_over(micro_config, tmp_path / "saved", discriminator={"mpd_channels": (3,)})
    _assert_same(state.params, trained.params)
    assert "discriminator_params does not fit, and keeps its initial value" in said


@pytest.mark.parametrize("kind", ["workdir", "saved model"])
@pytest.mark.parametrize(("key", "there", "here"), [("n_ffts", (64,), (128,)), ("mpd_periods", (2,), (3,))])
def test_a_discriminator_of_other_arguments_is_not_restored_even_if_its_arrays_fit(
    micro_config, trained_run, tmp_path, kind, key, there, here
):
    path, _, trained = trained_run
    if kind == "saved model":
        given = {"discriminator": build.build_discriminator(micro_config)}
        save_model(*load_model(path), tmp_path / "saved", **given, discriminator_params=trained.discriminator_params)
        path = tmp_path / "saved"
    state, fresh, said = _take_over(micro_config, path, discriminator={key: here})
    _assert_same(state.discriminator_params, fresh.discriminator_params)
    _assert_same(state.discriminator_opt_state, fresh.discriminator_opt_state)
    assert f"its discriminator differs from config.discriminator:\n  discriminator.{key}: {there} there, {here}" in said
    assert "discriminator_params does not fit, and keeps its initial value" in said
    assert np.any(state.params["encoder"]["input_conv"]["v"])


def test_a_discriminator_that_computes_the_same_otherwise_is_taken(micro_config, trained_run):
    changes = {"dtype": "bfloat16", "remat": True, "msd_scales": (1, 3), "mel_stft_sample_rate": 48000}
    state, _, said = _take_over(micro_config, trained_run[0], discriminator=changes)
    _assert_same(state.discriminator_params, trained_run[2].discriminator_params)
    assert "afresh" not in said


@pytest.mark.parametrize(
    ("theirs", "said_of_it"),
    [
        (OwnDiscriminator(2.0), None),
        (OwnDiscriminator(2.0, remat=True), None),
        (OwnDiscriminator(), "discriminator.power: 1.0 there, 2.0 here"),
        (type("Renamed", (OwnDiscriminator,), {})(2.0), "has no 'Renamed'"),
    ],
    ids=["the same", "other remat", "other power", "another class"],
)
def test_a_discriminator_of_ones_own_is_compared_too(micro_config, trained_run, tmp_path, theirs, said_of_it):
    params = theirs.init(jax.random.key(0), jnp.zeros((1, 64, 2)))["params"]
    saved = {"discriminator": theirs, "discriminator_params": params}
    save_model(*load_model(trained_run[0]), tmp_path / "saved", **saved)
    section = {"_target_": f"{__name__}.OwnDiscriminator", "power": 2.0}
    micro_config.discriminator = ml_collections.ConfigDict(section)
    state, fresh, said = _take_over(micro_config, tmp_path / "saved")
    _assert_same(state.discriminator_params, params if said_of_it is None else fresh.discriminator_params)
    assert ("discriminator_params does not fit, and keeps its initial value" in said) == (said_of_it is not None)
    assert (said_of_it or "") in said


def test_only_weights(micro_config, trained_run, tmp_path):
    workdir, _, trained = trained_run
    state, fresh, said = _take_over(micro_config, workdir)
    assert int(state.step) == 2
    _assert_same(state, trained)
    best = Checkpoints(workdir / "checkpoints", read_only=True).best()[0]
    state, _, said = _take_over(micro_config, workdir, init_weights_only=True)
    assert f"restored from {workdir} (checkpoint {best}): the step and the optimizers are reset" in said
    _assert_same(state.params, load_model(workdir)[1]["params"])
    kept = load_training_state(workdir, step=best)["discriminator_params"]
    _assert_same(state.discriminator_params, kept)
    assert int(state.step) == 0
    _assert_same((state.opt_state, state.discriminator_opt_state), (fresh.opt_state, fresh.discriminator_opt_state))
    micro_config.init_from = None
    with pytest.raises(ConfigError, match="init_weights_only is set without config.init_from"):
        configuration.check(micro_config, 1)


def test_a_damaged_checkpoint_is_passed_over(micro_config, trained_run, tmp_path):
    workdir = shutil.copytree(trained_run[0], tmp_path / "run")
    newest = workdir / "checkpoints" / "2"
    shutil.rmtree(newest / "state")
    (newest / "state").mkdir()
    state, _, said = _take_over(micro_config, workdir)
    assert int(state.step) == 1
    assert "warning: skipped" in said
    assert "(checkpoint 1): step 1;" in said
    with pytest.raises(CheckpointError, match=f"config.init_from={newest} is damaged: "):
        _take_over(micro_config, newest)


def test_a_checkpoint_that_is_out_of_reach_is_not_passed_over(micro_config, trained_run, monkeypatch):
    newest = trained_run[0] / "checkpoints" / "2"

    def opened(self, step):
        if step == 2:
            raise PermissionError(13, "Permission denied", str(newest))
        return whole(self, step)

    whole = step_folders.StepFolders.opened
    monkeypatch.setattr(step_folders.StepFolders, "opened", opened)
    with pytest.raises(CheckpointError, match="2 cannot be read: Permission denied"):
        _take_over(micro_config, trained_run[0])


@pytest.mark.slow
def test_only_weights_of_a_torch_file(micro_config):
    config = ml_collections.ConfigDict(micro_config.to_dict(), convert_dict=True)
    config.init_from, config.init_weights_only = str(LIGHTNING), True
    lines = "\n".join(warm_start.adopt_settings(config, {"init_from"}, warm_start.Path("none")))
    assert "--config.model.latent_dim=3  (the config had 4)" in lines
    assert "--config.discriminator.mpd_channels=(2, 2, 2)" in lines
    for key in ("num_steps", "use_adversarial", "adversarial", "kl", "optimizer", "discriminator_optimizer"):
        assert config[key] == micro_config[key], key
    state, fresh, said = _take_over(config, LIGHTNING)
    assert int(state.step) == 0
    assert "restored: the step and the optimizers are reset; params, latent_statistics, discriminator_params" in said
    _assert_same(state.opt_state, fresh.opt_state)
    assert np.abs(state.discriminator_params["mpd"]["discriminators_0"]["conv_post"]["bias"]).max() > 0


@pytest.mark.parametrize("kind", ["workdir", "saved model", "torch file"])
def test_another_architecture_is_refused_before_anything_is_compiled(
    micro_config, trained_run, calibrated, tmp_path, kind, monkeypatch
):
    path = {"workdir": trained_run[0], "saved model": calibrated, "torch file": LIGHTNING}[kind]

    def compiled(*args):
        pytest.fail("it compiles")

    monkeypatch.setattr(compilation, "compiled", compiled)
    micro_config.init_from = str(path)
    micro_config.model.latent_dim, micro_config.model.dilations = 5, (1, 2)
    micro_config.use_adversarial = False
    there = (3, "(1, 3)") if kind == "torch file" else (4, "(1,)")
    with pytest.raises(CheckpointError) as refused:
        train.train(micro_config, tmp_path / "new")
    said = str(refused.value)
    assert said.startswith(f"config.init_from={path}: its model differs from config.model:\n")
    assert f"\n  model.latent_dim: {there[0]} there, 5 here\n" in said
    assert f"\n  model.dilations: {there[1]} there, (1, 2) here\nto start from it, give --config.model." in said
    assert f" --config.model.dilations='{there[1]}'" in said
    assert ("model.kernel_size" in said) == (kind == "torch file")  # which is equal in the others
    assert not (tmp_path / "new" / "config.json").exists()


def test_all_arguments_of_a_model_are_compared_but_how_it_is_computed():
    others = {"encoder_frozen", "dtype", "weight_norm", "remat", "parent", "name"}
    assert {*AudioVAE.__dataclass_fields__} - others == {*CONFIG_KEYS}


@pytest.mark.parametrize("kind", ["workdir", "checkpoint", "saved model"])
def test_a_finished_run_is_refused_before_the_data_is_looked_at(
    micro_config, trained_run, calibrated, tmp_path, kind, monkeypatch
):
    workdir = trained_run[0]
    paths = {"workdir": workdir, "checkpoint": workdir / "checkpoints" / "2", "saved model": calibrated}
    monkeypatch.setattr(start.pipeline, "open_data", lambda *_, **__: pytest.fail("it looks at the data"))
    monkeypatch.setattr(build, "build_recipe", lambda _: pytest.fail("it traces the networks"))
    micro_config.init_from = str(paths[kind])
    said = (
        f"^config.init_from={paths[kind]} is already at step 2; raise config.num_steps=2 .* --config.init_weights_only$"
    )
    with pytest.raises(ConfigError, match=said):
        train.train(micro_config, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    micro_config.num_steps = 3
    warm_start.require_same_model(micro_config)
    micro_config.num_steps, micro_config.init_weights_only = 2, True
    warm_start.require_same_model(micro_config)


def test_an_unusable_source_is_an_error_with_its_path(micro_config, tmp_path):
    micro_config.init_from = str(tmp_path)
    with pytest.raises(CheckpointError, match=f"config.init_from={tmp_path} contains no checkpoint; give a training"):
        warm_start.require_same_model(micro_config)
    micro_config.init_from = str(tmp_path / "nothing.pt")
    for read in (warm_start.require_same_model, lambda config: warm_start.adopt_settings(config, (), tmp_path)):
        with pytest.raises(CheckpointError, match=r"^config.init_from=.*nothing.pt: there is no such file"):
            read(micro_config)


@pytest.mark.slow
def test_a_fine_tune_that_only_worsens_keeps_what_it_began_with(
    micro_config, calibrated, tmp_path, monkeypatch, capsys
):
    micro_config.init_from, micro_config.init_weights_only = str(calibrated), True
    micro_config.num_steps, micro_config.checkpoints_kept = 3, 1
    real = Validation.validate

    def validate(self, state, at):
        return {**real(self, state, at), "total_loss": 5.0 + at}

    monkeypatch.setattr(Validation, "validate", validate)
    state = train.train(micro_config, tmp_path / "run")
    assert int(state.step) == 3
    assert "val/total_loss 8.0000 (best 5.0000, of checkpoint 0)" in capsys.readouterr().out
    store = Checkpoints(tmp_path / "run" / "checkpoints", read_only=True)
    assert (store.steps(), store.best()[0]) == ([0, 3], 0)
    _assert_same(load_model(tmp_path / "run")[1], load_model(calibrated)[1])
    # The same command resumes in its workdir, without the file that it started from.
    shutil.rmtree(calibrated)
    _assert_same(train.train(micro_config, tmp_path / "run"), state)


@pytest.mark.parametrize("kind", ["workdir", "torch file"])
def test_parameters_to_reset_keep_their_initial_values(micro_config, trained_run, kind):
    micro_config.num_steps = 1000
    path, theirs = trained_run[0], trained_run[2].params
    if kind == "torch file":
        path = LIGHTNING
        warm_start.adopt_settings(_from(micro_config, path), (), trained_run[0])
        theirs = saved_model.open_model(path).variables["params"]
    micro_config.init_from = str(path)
    micro_config.model.latent_dim += 1
    with pytest.raises(CheckpointError, match=r"or the parameters to re-initialise in --config.init_reset"):
        warm_start.require_same_model(micro_config)
    micro_config.init_reset = ("encoder/final_conv",)
    with pytest.raises(CheckpointError, match=r"other shapes there: decoder/input_conv; add them to config.init_reset"):
        warm_start.require_same_model(micro_config)
    micro_config.init_reset = ("encoder/final_conv", "decoder/input_conv")
    warm_start.require_same_model(micro_config)
    state, fresh, said = _take_over(micro_config, path, ema={"decay": 0.9})
    for part, name in (("encoder", "final_conv"), ("decoder", "input_conv")):
        _assert_same(state.params[part][name], fresh.params[part][name])
    _assert_same(state.params["decoder"]["final_conv"], theirs["decoder"]["final_conv"])
    _assert_same(state.params["encoder"]["blocks_0"], theirs["encoder"]["blocks_0"])
    _assert_same((state.latent_statistics, state.opt_state), (fresh.latent_statistics, fresh.opt_state))
    _assert_same(state.averaged_params, state.params)
    assert "config.init_reset=('encoder/final_conv', 'decoder/input_conv')" in said


def _from(config, path):
    config.init_from = str(path)
    return config


def test_weights_alone_are_those_that_are_evaluated(micro_config, trained_run, tmp_path):
    trained = trained_run[2]
    trained = jax.tree.map(jnp.asarray, trained)
    halved = jax.tree.map(lambda x: x / 2, trained.params)
    store = Checkpoints(tmp_path / "checkpoints")
    config = configuration.plain(trained_run[1])
    store.save(trained.replace(averaged_params=halved), step=2, config=config, data={}, metrics={"total_loss": 1.0})
    store.close()
    _assert_same(load_model(tmp_path)[1]["params"], halved)
    state, _, _ = _take_over(micro_config, tmp_path, init_weights_only=True)
    _assert_same(state.params, halved)
    state, _, _ = _take_over(micro_config, tmp_path, init_weights_only=False, ema={"decay": 0.9})
    _assert_same((state.params, state.averaged_params), (trained.params, halved))
    state, _, _ = _take_over(micro_config, trained_run[0])  # a run without an average
    _assert_same((state.params, state.averaged_params), (trained.params, trained.params))


def teach(audio, sample_rate):
    """A teacher of `config.alignment`: eight features of each of four frames."""
    return np.abs(audio).reshape(4, 8, -1).mean(axis=2)


@pytest.mark.slow
def test_the_projection_of_an_alignment_is_restored_or_new(micro_config, trained_run, tmp_path):
    workdir, _, trained = trained_run
    alignment = {"_target_": f"{__name__}.teach"}
    started, fresh, said = _take_over(micro_config, workdir, alignment=alignment)
    assert "alignment_params is missing, and keeps its initial value" in said
    assert "opt_state is missing" not in said
    _assert_same((started.params, started.alignment_params), (trained.params, fresh.alignment_params))
    moments = dict(optax.tree.get(started.opt_state, "mu"))
    _assert_same(moments.pop("alignment"), {"kernel": np.zeros((4, 8))})
    _assert_same(moments, optax.tree.get(trained.opt_state, "mu"))

    store = Checkpoints(tmp_path / "checkpoints")
    aligned = started.replace(alignment_params={"kernel": jnp.ones((4, 8))})
    aligned = aligned.replace(opt_state=jax.tree.map(lambda x: x + 1, aligned.opt_state))
    store.save(aligned, step=2, config=configuration.plain(micro_config), data={}, metrics={"total_loss": 1.0})
    store.close()
    state, _, said = _take_over(micro_config, tmp_path)
    assert "alignment_params" in said.splitlines()[-1]
    _assert_same((state.alignment_params, state.opt_state), (aligned.alignment_params, aligned.opt_state))

    # Elsewhere, only the model's moments are of use.
    of_model = jax.tree.map(lambda x: x + 1, trained.opt_state)
    micro_config.alignment._target_ = None
    state, _, said = _take_over(micro_config, tmp_path)
    assert "alignment" not in said
    _assert_same(state.opt_state, of_model)
    recipe, _ = _traced(micro_config)
    _assert_same(load_training_state(tmp_path, recipe.optimizer)["optimizer_state"], of_model)
    conversion.export_torch(str(tmp_path), str(tmp_path / "x.pt"))
    _assert_same(training.read_training(tmp_path / "x.pt").audio_vae.variables["params"], trained.params)


def test_a_torch_file_has_no_projection(micro_config, trained_run):
    micro_config.alignment._target_ = f"{__name__}.teach"
    warm_start.adopt_settings(_from(micro_config, LIGHTNING), (), trained_run[0])
    state, fresh, said = _take_over(micro_config, LIGHTNING)
    assert "alignment_params is missing, and keeps its initial value" in said
    _assert_same(state.alignment_params, fresh.alignment_params)
    moments = optax.tree.get(state.opt_state, "mu")
    assert list(moments) == ["alignment", "decoder", "encoder"]
    assert not np.any(moments["alignment"]["kernel"])
    assert np.any(moments["encoder"]["final_conv"]["v"])


def test_a_run_starts_from_a_model_on_the_hub_and_names_its_commit(
    hub, micro_config, trained_run, calibrated, tmp_path
):
    commit = hub.upload("me/model", calibrated)
    micro_config.update({"init_from": "hf://me/model", "init_weights_only": True})
    assert warm_start.adopt_settings(micro_config, (), tmp_path) == []
    url = f"hf://me/model@{commit}"
    assert micro_config.init_from == url
    warm_start.require_same_model(micro_config)
    hub.commit("me/model", {"model.json": b"{}"})
    state, _, said = _take_over(micro_config, url)
    _assert_same(state.params, trained_run[2].params)
    assert f"restored from {url}: the step and the optimizers are reset" in said


def test_a_torch_file_on_the_hub_gives_its_settings(hub, micro_config, tmp_path):
    commit = hub.commit("me/old", {"last.ckpt": LIGHTNING.read_bytes()})
    micro_config.init_from = "hf://me/old/last.ckpt@main"
    lines = warm_start.adopt_settings(micro_config, (), tmp_path)
    assert lines[0].startswith(f"settings of the run in hf://me/old/last.ckpt@{commit}; ")
    assert micro_config.model.base_channels == 2


def test_a_resumed_run_keeps_the_commit_that_it_started_from(hub, micro_config, tmp_path):
    first, second = (hub.commit("me/model", {"model.json": text}) for text in (b"1", b"2"))
    (tmp_path / "config.json").write_text(json.dumps({"init_from": f"hf://me/model@{first}"}))

    def pinned(url):
        micro_config.init_from = url
        warm_start.pin_revision(micro_config, tmp_path)
        return micro_config.init_from

    assert pinned("hf://me/model") == f"hf://me/model@{first}"
    assert pinned("hf://me/model@main") == f"hf://me/model@{second}"  # which `claim_workdir` refuses
    with pytest.raises(CheckpointError, match="^config.init_from=hf://me/other: there is no such repository"):
        pinned("hf://me/other")
    hub.stop()
    assert pinned("hf://me/model@main") == f"hf://me/model@{first}"
    assert pinned(None) is None


@pytest.mark.slow
def test_a_run_from_the_hub_is_recorded_with_its_commit_and_resumed(
    hub, micro_config, calibrated, audio_folder, tmp_path
):
    commit = hub.upload("me/model", calibrated)
    micro_config.data.root, micro_config.init_weights_only = str(audio_folder), True
    for _ in range(2):  # the second resumes, without the model
        micro_config.init_from = "hf://me/model"
        state = train.train(micro_config, tmp_path / "run")
        assert int(state.step) == micro_config.num_steps
        assert json.loads((tmp_path / "run" / "config.json").read_text())["init_from"] == f"hf://me/model@{commit}"
        hub.stop()
