"""Saved models: complete, readable, verified, and written atomically."""

import json
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conftest import GOLDEN, initialised, random_variables

from audiovae_jax import AudioVAE, EnCodecDiscriminator
from audiovae_jax.config import build, configuration
from audiovae_jax.errors import CheckpointError
from audiovae_jax.inference import inspection
from audiovae_jax.persistence import checkpoint, saved_model
from audiovae_jax.persistence.locate import Kind
from audiovae_jax.persistence.saved_model import load_model, save_model
from audiovae_jax.persistence.training_state import load_training_state
from audiovae_jax.storage import array_store
from audiovae_jax.storage.checksum import json_checksum

SMALL = {"base_channels": 2, "channel_mults": (1, 2), "strides": (2, 3), "latent_dim": 3, "dilations": (1, 3)}


@pytest.fixture(scope="module")
def whole():
    model = AudioVAE(**SMALL, dtype="bfloat16", encoder_frozen=True)
    return model, random_variables(model)


def _require_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_model_is_loaded_with_no_architecture_given(tmp_path, whole):
    model, variables = whole
    save_model(model, variables, tmp_path / "m", epoch=3, global_step=7, metadata={"note": "ü"}, sample_rate=48000)
    loaded, again = load_model(tmp_path / "m")
    assert loaded == model
    _require_equal(again, variables)
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(again))
    _, there = load_model(tmp_path / "m", device=jax.devices()[2])
    assert all(leaf.devices() == {jax.devices()[2]} for leaf in jax.tree.leaves(there))
    description = json.loads((tmp_path / "m" / "model.json").read_text())
    expected = {
        "sample_rate": 48000, "channels": 2, "hop_length": 6, "latent_statistics": "calibrated", "encoder_frozen": True,
        "epoch": 3, "global_step": 7, "metadata": {"note": "ü"},
        "parameter_count": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
    }  # fmt: skip
    assert {key: description[key] for key in expected} == expected
    assert description["arrays"]["model"]["latent_statistics/latent_std"].startswith("float32[3] ")


@pytest.mark.parametrize("dtype", [jnp.float32, "float32", jnp.bfloat16])
def test_a_loaded_model_equals_the_one_that_was_saved(tmp_path, dtype):
    model = AudioVAE(**SMALL, dtype=dtype)
    save_model(model, random_variables(model), tmp_path / "m")
    assert load_model(tmp_path / "m")[0] == model


def test_a_saved_model_is_replaced_atomically_and_nothing_else_is_overwritten(tmp_path, whole):
    model, variables = whole
    save_model(model, variables, tmp_path / "m")
    changed = jax.tree.map(lambda x: x + 1, variables)
    save_model(model, changed, tmp_path / "m")
    _require_equal(load_model(tmp_path / "m")[1], changed)
    with pytest.raises(CheckpointError, match="epoch, global_step and metadata must be JSON values"):
        save_model(model, variables, tmp_path / "m", metadata={"f": object()})
    _require_equal(load_model(tmp_path / "m")[1], changed)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    with pytest.raises(CheckpointError, match="other exists and is not a saved model"):
        save_model(model, variables, tmp_path / "other")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["m", "other"]
    assert calibrated(tmp_path / "m") == "calibrated"


def calibrated(path):
    return json.loads((path / "model.json").read_text())["latent_statistics"]


def test_a_save_that_fails_half_way_leaves_what_was_there(tmp_path, whole, monkeypatch):
    model, variables = whole
    save_model(model, variables, tmp_path / "m")

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(array_store, "write_tree", fail)
    with pytest.raises(CheckpointError, match="was not written: no space left"):
        save_model(model, jax.tree.map(lambda x: x + 1, variables), tmp_path / "m")
    _require_equal(load_model(tmp_path / "m")[1], variables)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_discriminator_is_described_by_its_name_and_arguments(tmp_path, whole):
    model, variables = whole
    discriminator = EnCodecDiscriminator(stft_filters=1, n_ffts=(64,), use_msd=False, use_mpd=False)
    params = initialised(discriminator, jnp.zeros((1, 256, 2)))["params"]
    save_model(model, variables, tmp_path / "m", discriminator=discriminator, discriminator_params=params)
    described = json.loads((tmp_path / "m" / "model.json").read_text())["discriminator"]
    assert described["_target_"] == "audiovae_jax.EnCodecDiscriminator"
    assert described["n_ffts"] == [64]
    with pytest.raises(CheckpointError, match="give discriminator and discriminator_params together"):
        save_model(model, variables, tmp_path / "n", discriminator=discriminator)


def _flip_each(folder, load, expected):
    """Flip a bit of each large file, one at a time. Loading must fail or be equal. Return the error messages."""
    refused = []
    files = sorted((p for p in folder.rglob("*") if p.is_file()), key=lambda p: -p.stat().st_size)
    for path in files[:6]:
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 4]) + data[middle + 1 :] if data else b"\0")
        try:
            _require_equal(load(), expected)  # Orbax keeps files without contents
        except CheckpointError as error:
            refused.append(str(error))
        path.write_bytes(data)
    return refused


@pytest.mark.slow
def test_a_flipped_bit_is_refused_or_without_consequence(tmp_path, whole):
    model, variables = whole
    save_model(model, variables, tmp_path / "m")
    refused = _flip_each(tmp_path / "m" / "model", lambda: load_model(tmp_path / "m")[1], variables)
    assert len(refused) >= 2
    assert all(message.startswith(f"{tmp_path / 'm' / 'model'} is damaged: ") for message in refused)


def test_damage_is_named(tmp_path, whole):
    model, variables = whole
    save_model(model, variables, tmp_path / "whole", optimizer_state=optax.adam(1e-3).init(variables["params"]))

    def damaged(change):
        shutil.rmtree(tmp_path / "m", ignore_errors=True)
        shutil.copytree(tmp_path / "whole", tmp_path / "m")
        change(tmp_path / "m")
        with pytest.raises(CheckpointError) as error:
            load_model(tmp_path / "m")
        assert str(tmp_path / "m") in str(error.value)
        return str(error.value)

    assert "m/model is damaged" in damaged(lambda path: (path / "model" / "manifest.ocdbt").unlink())
    assert "m/model is damaged" in damaged(lambda path: shutil.rmtree(path / "model"))
    text = (tmp_path / "whole" / "model.json").read_text()
    cut = damaged(lambda path: (path / "model.json").write_text(text[: len(text) // 2]))
    assert "m/model.json is damaged: JSONDecodeError" in cut
    description = json.loads(text)

    def rewrite(sign=True, **changes):
        changed = {**description, **changes}
        changed["checksum"] = json_checksum(changed) if sign else changed["checksum"]
        return lambda path: (path / "model.json").write_text(json.dumps(changed))

    config = description["config"]
    edited = damaged(rewrite(sign=False, config={**config, "dilations": [1, 2]}))
    assert "model.json does not match its checksum: it is damaged, or was edited" in edited
    assert "has format 99; this version reads format 1, install a newer one" in damaged(rewrite(format=99))
    assert "its config is not valid for AudioVAE (ValueError: latent_dim=0" in damaged(
        rewrite(config={**config, "latent_dim": 0})
    )
    assert "its config is not valid for AudioVAE" in damaged(rewrite(config=[1]))
    assert "does not match its config: latent_statistics/latent_mean" in damaged(
        rewrite(config={**config, "latent_dim": 4})
    )
    name = "params/encoder/input_conv/bias"
    arrays = {**description["arrays"]["model"], name: "float32[2] 00000000"}
    assert f"{name} does not match its checksum" in damaged(rewrite(arrays={"model": arrays}))
    del arrays[name]
    assert f"{name} is absent there, but must be float32[2]" in damaged(rewrite(arrays={"model": arrays}))
    for nonsense in ({}, [], {"model": []}, {"model": {name: 7}}):
        assert "arrays" in damaged(rewrite(arrays=nonsense))


@pytest.mark.slow
def test_a_workdir_gives_its_best_or_a_chosen_checkpoint(tmp_path, trained_run):
    workdir, micro_config, state = trained_run
    shutil.copytree(workdir, tmp_path / "run")
    model, variables = load_model(tmp_path / "run", step=2)
    assert model.latent_dim == micro_config.model.latent_dim
    _require_equal(variables["params"], state.params)
    assert all(len(leaf.devices()) == 1 for leaf in jax.tree.leaves(variables))
    opened = saved_model.open_model(tmp_path / "run")
    best = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints", read_only=True).best()[0]
    assert (opened.kind, opened.global_step, opened.sample_rate) == (Kind.CHECKPOINT, best, 44100)
    assert "total_loss" in opened.metadata
    _require_equal(load_model(tmp_path / "run" / "checkpoints" / "2")[1], variables)
    with pytest.raises(CheckpointError, match="has no checkpoint 77; it has 1, 2"):
        load_model(tmp_path / "run", step=77)
    folder = tmp_path / "run" / "checkpoints" / "2" / "state"
    refused = _flip_each(folder, lambda: load_model(tmp_path / "run", step=2)[1], variables)
    assert refused
    assert all(message.startswith(f"{folder.parent} is damaged: ") for message in refused), refused[:3]


@pytest.mark.parametrize("name", [pytest.param("lightning.ckpt", marks=pytest.mark.slow), "save_model.pt"])
def test_torch_files_are_models_too(name):
    model, variables = load_model(GOLDEN / name)
    model.apply(variables, jnp.zeros((1, 64, 2)), deterministic=True)
    assert saved_model.open_model(GOLDEN / name).sample_rate == (44100 if name == "lightning.ckpt" else None)
    with pytest.raises(CheckpointError, match="is a single model without steps, so step=3 cannot be used"):
        load_model(GOLDEN / name, step=3)


def test_files_without_a_model_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="nothing: there is no such file or folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="contains no checkpoint"):
        load_model(tmp_path)


@pytest.mark.slow
def test_training_states_come_back(tmp_path, whole):
    model, variables = whole
    optimizer = optax.adamw(1e-3)
    trainable = {"decoder": variables["params"]["decoder"]}  # the encoder is frozen
    state = optimizer.init(trainable)
    gradients = jax.tree.map(jnp.ones_like, trainable)
    _, state = optimizer.update(gradients, state, trainable)
    discriminator = EnCodecDiscriminator(1, n_ffts=(64,), use_msd=False, use_mpd=False, dtype="float32")
    params = initialised(discriminator, jnp.zeros((1, 256, 2)))["params"]
    save_model(
        model, variables, tmp_path / "m", optimizer_state=state, epoch=3, global_step=7, metadata={"loss": 0.5},
        discriminator=discriminator, discriminator_params=params,
    )  # fmt: skip
    loaded = load_training_state(tmp_path / "m", optimizer)
    assert (loaded["epoch"], loaded["global_step"], loaded["metadata"]) == (3, 7, {"loss": 0.5})
    assert jax.tree.structure(loaded["optimizer_state"]) == jax.tree.structure(state)
    _require_equal(loaded["optimizer_state"], state)
    assert loaded["discriminator"] == discriminator
    _require_equal(loaded["discriminator_params"], params)
    assert load_training_state(tmp_path / "m")["optimizer_state"] is None
    with pytest.raises(CheckpointError, match="the optimizer's state belongs to another transform"):
        load_training_state(tmp_path / "m", optax.sgd(1e-3, momentum=0.9))


@pytest.mark.slow
def test_training_states_of_workdirs_and_torch_files(trained_run):
    workdir, config, state = trained_run
    recipe = build.build_recipe(config)
    loaded = load_training_state(workdir, recipe.optimizer, step=2)
    assert loaded["global_step"] == 2
    _require_equal(loaded["optimizer_state"], state.opt_state)
    _require_equal(loaded["discriminator_params"], state.discriminator_params)
    loaded = load_training_state(GOLDEN / "lightning.ckpt", recipe.optimizer)
    assert loaded["global_step"] == 3
    assert int(optax.tree.get(loaded["optimizer_state"], "count")) == 3
    assert loaded["discriminator"].n_ffts == (64,)
    loaded = load_training_state(GOLDEN / "save_model.pt", recipe.optimizer)
    assert (loaded["epoch"], loaded["metadata"]) == (3, {"val_loss": 0.125, "notes": "golden"})
    assert int(optax.tree.get(loaded["optimizer_state"], "count")) == 3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # Orbax's own threads
def test_a_full_disk_is_an_error_and_leaves_existing_files(tmp_path, whole, full_disk):
    model, variables = whole
    save_model(model, variables, tmp_path / "m")
    big = [jnp.asarray(np.random.default_rng(0).standard_normal(500_000), jnp.float32)]
    with full_disk(200_000), pytest.raises(CheckpointError, match="m was not written: File too large"):
        save_model(model, jax.tree.map(lambda x: x + 1, variables), tmp_path / "m", optimizer_state=big)
    _require_equal(load_model(tmp_path / "m")[1], variables)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_counts_of_any_type_are_taken(tmp_path, whole):
    model, variables = whole
    save_model(
        model, variables, tmp_path / "m", epoch=np.int64(0), global_step=jnp.int32(7), sample_rate=np.float64(48000)
    )
    opened = saved_model.open_model(tmp_path / "m")
    assert (opened.epoch, opened.global_step, opened.sample_rate) == (0, 7, 48000)
    assert type(opened.sample_rate) is int
    for options in ({"epoch": -1}, {"sample_rate": 44100.5}, {"global_step": "7"}):
        (name,) = options
        with pytest.raises(CheckpointError, match=f"{name}=.* must be a whole number"):
            save_model(model, variables, tmp_path / "n", **options)


def test_a_best_checkpoint_that_is_damaged_is_passed_over_and_named(tmp_path, trained_run):
    workdir, _, state = trained_run
    shutil.copytree(workdir, tmp_path / "run")
    folder = tmp_path / "run" / "checkpoints"
    shutil.rmtree(folder / "1")
    best = checkpoint.Checkpoints(folder, read_only=True).best()[0]
    shutil.copytree(folder / "2", folder / "5")  # an intact one next to it
    (folder / str(best) / "run" / "metadata").write_text("{")
    with pytest.warns(UserWarning, match=rf"skipped .*{best} is damaged: JSONDecodeError.*; checkpoint 5 is used"):
        _, variables = load_model(tmp_path / "run")
    _require_equal(variables["params"], state.params)
    shutil.rmtree(folder / "5" / "state")
    with pytest.raises(CheckpointError, match=r"2 is damaged(.|\n)*5 is damaged"):
        load_model(tmp_path / "run")


def test_a_model_is_described_without_its_custom_discriminator(tmp_path, whole, monkeypatch):
    (tmp_path / "my_parts.py").write_text(
        "from audiovae_jax import EnCodecDiscriminator\n\n\nclass Mine(EnCodecDiscriminator):\n    pass\n"
    )
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        import my_parts

        discriminator = my_parts.Mine(stft_filters=1, n_ffts=(64,), use_msd=False, use_mpd=False)
        params = {"weight": np.zeros(3, np.float32)}
        save_model(*whole, tmp_path / "m", discriminator=discriminator, discriminator_params=params)
    monkeypatch.delitem(sys.modules, "my_parts")
    described = inspection.inspect_model(tmp_path / "m")
    assert described["parameters"] > 0
    assert described["discriminator"].startswith("my_parts.Mine, 3 parameters; cannot be loaded: ")
    assert "there is no module 'my_parts'; put its folder on PYTHONPATH" in described["discriminator"]


def test_a_run_with_a_discriminator_of_ones_own_is_described_elsewhere(tmp_path, trained_run):
    _, config, state = trained_run
    config = configuration.plain(config)
    config["discriminator"] = {"_target_": "my_parts.Mine", "width": 3}
    store = checkpoint.Checkpoints(tmp_path / "run" / "checkpoints")
    store.save(jax.device_put(state), step=7, config=config, data={}, metrics={"total_loss": 1.0})
    store.close()
    described = inspection.inspect_model(tmp_path / "run")
    assert (described["step"], described["sample rate (Hz)"], described["metadata"]) == (7, 44100, {"total_loss": 1.0})
    count = sum(leaf.size for leaf in jax.tree.leaves(state.discriminator_params))
    assert described["discriminator"].startswith(f"my_parts.Mine, {count:,} parameters; cannot be loaded: ")
