"""Models of other projects: diffusers, stable-audio-tools, DAC and DACVAE."""

import functools
import json
import shutil

import golden_foreign as golden
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
from conftest import applied, random_variables

from audiovae_jax import AudioVAE, Codec, load_model
from audiovae_jax.config import build
from audiovae_jax.distributed import mesh
from audiovae_jax.errors import CheckpointError
from audiovae_jax.models.receptive_field import decoder_context
from audiovae_jax.persistence import conversion
from audiovae_jax.persistence.locate import Kind, locate
from audiovae_jax.run import warm_start
from audiovae_jax.torch_io import dialects, export, import_audio_vae, layout
from audiovae_jax.torch_io.audio_vae import read_audio_vae
from audiovae_jax.torch_io.files.writer import write_checkpoint
from audiovae_jax.training.state import create_train_state

DIALECTS = {
    "diffusers": dialects.DIFFUSERS,
    "stable_audio_tools": dialects.STABLE_AUDIO_TOOLS,
    "elu": dialects.STABLE_AUDIO_TOOLS,
    "dac": dialects.DAC,
    "dacvae": dialects.DACVAE,
}


def channel_last(x):
    return np.moveaxis(x, 1, -1)


def write(folder, name, weights=None, config=None):
    """Write a golden model as its project does, and return its path."""
    weights = golden.load(name)[0] if weights is None else weights
    config = golden.config(name) if config is None else config
    folder.mkdir(exist_ok=True, parents=True)
    if name == "diffusers":
        safetensors.numpy.save_file(weights, folder / "diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        (folder / "config.json").write_text(json.dumps(config))
        return folder
    if name.startswith("dac"):
        write_checkpoint(folder / "weights.pth", {"state_dict": weights, "metadata": config})
        return folder / "weights.pth"
    write_checkpoint(folder / "model.ckpt", {"state_dict": weights, "global_step": 7})
    (folder / "model_config.json").write_text(json.dumps(config))
    return folder / "model.ckpt"


def require_numbers(model, variables, name):
    """Compare a model with the project's outputs."""
    _, io = golden.load(name)
    posterior = applied(model, variables, channel_last(io["audio"]), deterministic=True, method="encode")
    decoded = applied(model, variables, channel_last(io["z"]), method="decode")
    pairs = {"mean": (posterior.mean, channel_last(io["mean"])), "decoded": (decoded, channel_last(io["decoded"]))}
    if name != "dac":
        pairs["std"] = (np.exp(np.asarray(posterior.logvar) / 2), channel_last(io["std"]))
    for key, (ours, theirs) in pairs.items():
        assert ours.shape == theirs.shape, key
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max(), key


@pytest.mark.parametrize("name", golden.MODELS)
def test_each_projects_model_gives_its_numbers(tmp_path, name):
    imported = read_audio_vae(write(tmp_path / "m", name))
    require_numbers(imported.model, imported.jax_variables(), name)
    assert (imported.sample_rate, imported.dialect) == (golden.RATE, DIALECTS[name])
    assert imported.notes == []
    left_out = {line.key: line.note for line in imported.lines if line.became is None}
    assert all(key.startswith("quantizer.quantizers.") for key in left_out) or name == "dacvae"
    if name == "dacvae":
        assert "decoder.wm_model.msg_processor.weight" in left_out
        assert "decoder.model.1.block.6.weight" in left_out
        assert all(note.startswith("of the watermark, which is not added") for note in left_out.values())


@pytest.mark.parametrize("name", ["diffusers", "stable_audio_tools", "dac", "dacvae"])
def test_names_and_tensors_are_those_of_the_project_after_a_round_trip(tmp_path, name):
    weights, _ = golden.load(name)
    imported = read_audio_vae(write(tmp_path / "m", name))
    back = export.audio_vae_state_dict(imported.variables, DIALECTS[name], len(imported.model.strides))
    assert back.keys() == {line.key for line in imported.lines if line.became is not None}
    for key, tensor in back.items():
        np.testing.assert_array_equal(tensor, weights[key], err_msg=key)


@pytest.mark.parametrize(("project", "target"), [
    ("diffusers", "out"), ("stable-audio-tools", "out.ckpt"), ("stable-audio-tools", "out.safetensors")
])  # fmt: skip
def test_an_export_is_the_projects_file(tmp_path, project, target):
    name = project.replace("-", "_")
    imported = read_audio_vae(write(tmp_path / "m", name))
    export.export_for(project, imported.model, imported.variables, tmp_path / target, imported.sample_rate)
    again = read_audio_vae(tmp_path / target)
    assert (again.model, again.sample_rate, again.notes) == (imported.model, golden.RATE, [])
    for key, tensor in golden.load(name)[0].items():
        (line,) = (line for line in again.lines if line.key == key)
        assert (line.shape, line.dtype) == (tensor.shape, "float32")
    weights = [export.audio_vae_state_dict(part.variables, DIALECTS[name], 2) for part in (imported, again)]
    for key in weights[0]:
        np.testing.assert_array_equal(weights[0][key], weights[1][key])
    written = json.loads((tmp_path / ("out/config.json" if project == "diffusers" else "out.json")).read_text())
    for key, value in golden.config(name).items():
        assert written.get(key, value) == value or key == "sample_size"


@pytest.mark.parametrize("name", ["diffusers", "stable_audio_tools"])
def test_torch_loads_an_export_strictly_and_computes_the_same(tmp_path, name):
    torch = pytest.importorskip("torch")
    import foreign_reference

    model = AudioVAE(base_channels=6, channel_mults=(2, 3), strides=(2, 3), latent_dim=3, activation="snake_beta",
                     posterior="softplus", padding="ceil", final_bias=False)  # fmt: skip
    variables = random_variables(model)
    target = tmp_path / ("out" if name == "diffusers" else "out.ckpt")
    export.export_for(name.replace("_", "-"), model, variables, target, 44100)
    make = {"diffusers": foreign_reference.Diffusers, "stable_audio_tools": foreign_reference.stable_audio_tools}[name]
    theirs = make(base=6, mults=(2, 3), strides=(2, 3), latent=3)
    if name == "diffusers":
        from safetensors.torch import load_file

        state = load_file(target / "diffusion_pytorch_model.safetensors")
    else:
        state = torch.load(target)["state_dict"]  # weights_only
    theirs.load_state_dict(state, strict=True)
    audio = 0.3 * np.random.default_rng(0).standard_normal((1, 331, 2)).astype(np.float32)
    ours = applied(model, variables, audio, deterministic=True, method="encode")
    with torch.no_grad():
        mean, _ = theirs.encoder(torch.tensor(np.moveaxis(audio, -1, 1))).chunk(2, dim=1)
        decoded = theirs.decoder(mean)
    np.testing.assert_allclose(ours.mean, channel_last(mean.numpy()), atol=2e-5)
    statistics = {name: np.full(3, value, np.float32) for name, value in (("latent_mean", 0), ("latent_std", 1))}
    z = applied(model, {**variables, "latent_statistics": statistics}, channel_last(mean.numpy()), method="decode")
    np.testing.assert_allclose(z, channel_last(decoded.numpy()), atol=2e-5)


def _parametrized(weights):
    return {layout.parametrized_key(key): tensor for key, tensor in weights.items()}


def _folded(weights):
    folded = dict(weights)
    for key in [key for key in weights if key.endswith("weight_v")]:
        v, g = folded.pop(key), folded.pop(key.replace("weight_v", "weight_g"))
        norm = np.sqrt(np.sum(v.astype(np.float64) ** 2, axis=(1, 2), keepdims=True))
        folded[key.removesuffix("_v")] = (g * v / norm).astype(np.float32)
    return folded


@pytest.mark.parametrize("form", [_parametrized, _folded])
@pytest.mark.parametrize("name", ["diffusers", "stable_audio_tools"])
def test_each_form_of_weight_norm_is_imported(tmp_path, name, form):
    require_numbers(*import_audio_vae(write(tmp_path / "m", name, form(golden.load(name)[0]))), name)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("name", ["diffusers", "stable_audio_tools"])
def test_half_precision_becomes_float32(tmp_path, name, dtype):
    weights = {key: tensor.astype(dtype) for key, tensor in golden.load(name)[0].items()}
    _, variables = import_audio_vae(write(tmp_path / "m", name, weights))
    back = export.audio_vae_state_dict(variables, DIALECTS[name], 2)
    for key, tensor in weights.items():
        np.testing.assert_array_equal(back[key], tensor.astype(np.float32))


def test_folders_of_diffusers_may_be_pipelines_and_sharded(tmp_path):
    vae = write(tmp_path / "pipeline" / "vae", "diffusers")
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "StableAudioPipeline"}')
    plain = import_audio_vae(tmp_path / "pipeline")
    assert plain[0] == import_audio_vae(vae)[0]
    whole = vae / "diffusion_pytorch_model.safetensors"
    weights = safetensors.numpy.load_file(whole)
    whole.unlink()
    shards = {f"diffusion_pytorch_model-0000{i + 1}-of-00002.safetensors": sorted(weights)[i::2] for i in range(2)}
    for name, keys in shards.items():
        safetensors.numpy.save_file({key: weights[key] for key in keys}, vae / name)
    index = {"metadata": {}, "weight_map": {key: name for name, keys in shards.items() for key in keys}}
    (vae / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path / "pipeline", vae):
        assert locate(path).kind is Kind.TORCH_FOLDER
        require_numbers(*load_model(path), "diffusers")
    (vae / "diffusion_pytorch_model-00002-of-00002.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"vae lacks diffusion_pytorch_model-00002-of-00002.safetensors, which"):
        load_model(vae)


@pytest.mark.parametrize("prefix", ["", "autoencoder.", "pretransform.model.", "diffusion.pretransform.model."])
def test_models_inside_others_are_found(tmp_path, prefix):
    weights = {prefix + key: tensor for key, tensor in golden.load("stable_audio_tools")[0].items()}
    others = {"model.model.transformer.weight": np.ones((2, 2), np.float32)} if prefix else {}
    imported = read_audio_vae(write(tmp_path / "m", "stable_audio_tools", weights | others))
    require_numbers(imported.model, imported.jax_variables(), "stable_audio_tools")
    assert imported.notes == ["left out model (1 tensors), which is not part of the model"] * bool(prefix)


def test_the_average_of_the_weights_is_preferred(tmp_path):
    weights, _ = golden.load("stable_audio_tools")
    trained = {f"autoencoder.{key}": tensor + 1 for key, tensor in weights.items()}
    online = {f"autoencoder_ema.online_model.{key}": tensor + 1 for key, tensor in weights.items()}
    average = {f"autoencoder_ema.ema_model.{key}": tensor for key, tensor in weights.items()}
    counters = {"autoencoder_ema.initted": np.array(True), "autoencoder_ema.step": np.array(7)}  # ema_pytorch's
    imported = read_audio_vae(write(tmp_path / "m", "stable_audio_tools", trained | online | average | counters))
    require_numbers(imported.model, imported.jax_variables(), "stable_audio_tools")
    assert imported.notes[0] == (
        "the average (EMA) of its weights under autoencoder_ema.ema_model. is used, not the weights under "
        "autoencoder., autoencoder_ema.online_model."
    )
    two = {f"first.{key}": tensor for key, tensor in weights.items()} | {f"second.{k}": t for k, t in weights.items()}
    with pytest.raises(
        CheckpointError, match=r"it contains 2 models of stable-audio-tools, with the prefixes first\., "
    ):
        read_audio_vae(write(tmp_path / "n", "stable_audio_tools", two))


def test_a_pretransforms_scale_becomes_the_latents_standard_deviation(tmp_path):
    outer = golden.config("stable_audio_tools")
    inner = {"type": "autoencoder", "config": outer["model"], "scale": 0.5}
    config = {**outer, "model_type": "diffusion_cond", "model": {"pretransform": inner}}
    weights = {f"pretransform.model.{key}": tensor for key, tensor in golden.load("stable_audio_tools")[0].items()}
    model, variables = import_audio_vae(write(tmp_path / "m", "stable_audio_tools", weights, config))
    _, io = golden.load("stable_audio_tools")
    z = applied(model, variables, channel_last(io["audio"]), deterministic=True, method="encode").z
    np.testing.assert_allclose(z, channel_last(io["mean"]) / 0.5, atol=1e-5)


def test_without_a_config_shapes_are_used_and_reported(tmp_path):
    path = write(tmp_path / "m", "stable_audio_tools")
    with_config = import_audio_vae(path)[0]
    config = (path.parent / "model_config.json").rename(tmp_path / "elsewhere.json")
    imported = read_audio_vae(path)
    assert imported.model == with_config
    (note,) = imported.notes
    assert note.startswith("stable-audio-tools's config is not beside it; inferred from its tensors: in_channels=2, ")
    assert note.endswith("final_tanh=False; final_tanh is assumed, since shapes do not determine it")
    assert imported.sample_rate is None
    given = read_audio_vae(path, model_config=config)
    assert (given.model, given.sample_rate, given.notes) == (with_config, golden.RATE, [])
    with pytest.raises(CheckpointError, match=r"gone\.json: there is no such file"):
        read_audio_vae(path, model_config=tmp_path / "gone.json")
    write_checkpoint(path, {"state_dict": golden.load("elu")[0], "model_config": golden.config("elu")})  # embedded
    assert read_audio_vae(path).model.final_tanh


@pytest.mark.slow
def test_each_model_is_a_codec(tmp_path):
    for name in golden.MODELS:
        codec = Codec.load(write(tmp_path / name, name))
        audio = np.random.default_rng(0).standard_normal((1001, codec.model.in_channels)).astype(np.float32)
        assert codec.reconstruct(audio).shape == audio.shape
        assert codec.sample_rate == golden.RATE
        assert decoder_context(codec.model).before >= 4


@pytest.mark.parametrize("name", ["diffusers", "stable_audio_tools", "dac", "dacvae"])
def test_an_import_reports_each_tensor_and_compares_it(tmp_path, name):
    weights = dict(golden.load(name)[0])
    if name == "stable_audio_tools":
        weights["discriminator.discriminators.discriminators.0.conv_post.conv.bias"] = np.zeros(1, np.float32)
    path = write(tmp_path / "m", name, weights)
    made = conversion.import_torch(str(path), str(tmp_path / "saved"))
    taken = {line.key for line in made.lines if line.became is not None}
    assert (made.compared, made.largest_difference) == (len(taken), 0)
    assert taken <= weights.keys() == {line.key for line in made.lines}
    assert any("discriminator (1 tensors) is not imported" in note for note in made.notes) == (len(made.notes) > 0)
    require_numbers(*load_model(tmp_path / "saved"), name)
    exported = {"diffusers": "out", "stable_audio_tools": "out.ckpt"}.get(name)
    if exported is not None:
        project = name.replace("_", "-")
        back = conversion.export_torch(str(tmp_path / "saved"), str(tmp_path / exported), project=project)
        assert (back.tensors, back.left_out) == (len(taken), ())
        require_numbers(*load_model(tmp_path / exported), name)


@pytest.mark.slow
def test_a_run_starts_from_a_folder_of_diffusers(tmp_path, micro_config):
    micro_config.init_from, micro_config.init_weights_only = str(write(tmp_path / "m", "diffusers")), True
    micro_config.use_adversarial = False
    reader = warm_start.TorchReader()
    lines = warm_start.adopt_settings(micro_config, {"init_from"}, tmp_path / "run", reader)
    assert "  --config.model.activation=snake_beta  (the config had snake)" in lines
    assert "  --config.data.sample_rate=16000  (the config had 44100)" in lines
    warm_start.require_same_model(micro_config, reader)
    recipe = build.build_recipe(micro_config)
    fresh = create_train_state(recipe, build.example_shape(micro_config))
    state = warm_start.take_over(micro_config, recipe, fresh, mesh.replicated(mesh.make_mesh()), print, reader)
    require_numbers(recipe.model, state.variables, "diffusers")
    assert state.step == 0
    micro_config.model.posterior = "logvar"
    with pytest.raises(CheckpointError, match="model.posterior: softplus there, logvar here"):
        warm_start.require_same_model(micro_config)


def _config(**changes):
    return {**golden.config("diffusers"), **changes}


def _nested(part, **changes):
    config = golden.config("stable_audio_tools")
    config["model"][part] = {**config["model"][part], **changes}
    return config


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("diffusers", _config(downsampling_ratios=[2, 3]), r"its config has strides=\(2, 3\), but its tensors have st"),
        (
            "diffusers",
            _config(_class_name="AutoencoderKL"),
            "its config is of AutoencoderKL, not of AutoencoderOobleck",
        ),
        ("diffusers", _config(sampling_rate=-1), "its sample rate=-1 must be a whole number"),
        ("stable_audio_tools", _nested("bottleneck", type="rvq"), "its bottleneck is of type 'rvq'; an AudioVAE has"),
        ("stable_audio_tools", _nested("encoder", type="taae"), "its encoder is of type 'taae'; only oobleck is"),
        ("stable_audio_tools", _nested("decoder", soft_clip=True), "its decoder has soft_clip=true, which an AudioVAE"),
        ("stable_audio_tools", {"model_type": "diffusion_cond", "model": {}}, r"\(diffusion_cond\) has no autoencoder"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, name, config, message):
    with pytest.raises(CheckpointError, match=message):
        import_audio_vae(write(tmp_path / "m", name, config=config))


def test_shapes_that_fit_two_readings_are_refused(tmp_path):
    weights = dict(golden.load("stable_audio_tools")[0])
    for key in ("weight_g", "weight_v", "bias"):
        weights[f"encoder.layers.4.{key}"] = weights[f"encoder.layers.4.{key}"][:3]
    path = write(tmp_path / "m", "stable_audio_tools", weights, {})
    with pytest.raises(
        CheckpointError, match="as many channels as its decoder's input, 3: it has no bottleneck, or one"
    ):
        import_audio_vae(path)
    config = golden.config("stable_audio_tools")
    (tmp_path / "m" / "model_config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match="has a Gaussian bottleneck, but its encoder has no channels for the scales"
    ):
        import_audio_vae(path)
    del config["model"]["bottleneck"]
    (tmp_path / "m" / "model_config.json").write_text(json.dumps(config))
    assert import_audio_vae(path)[0].posterior == "none"


def test_what_is_no_autoencoder_is_refused(tmp_path):
    (tmp_path / "dit").mkdir()
    (tmp_path / "dit" / "config.json").write_text('{"_class_name": "StableAudioDiTModel"}')
    transformer = {
        "proj_in.weight": np.zeros((2, 2), np.float32),
        "transformer_blocks.0.norm.weight": np.zeros(2, np.float32),
    }
    safetensors.numpy.save_file(transformer, tmp_path / "dit" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"only with proj_in, transformer_blocks; its config is of StableAudioDiTM"
    ):
        load_model(tmp_path / "dit")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "model_index.json").write_text('{"_class_name": "StableAudioPipeline"}')
    with pytest.raises(
        CheckpointError, match="pipeline is a pipeline of diffusers without its autoencoder, the folder vae"
    ):
        load_model(tmp_path / "pipeline")
    folder = write(tmp_path / "m", "diffusers")
    (folder / "config.json").unlink()
    with pytest.raises(
        CheckpointError, match="m has no config.json, which diffusers writes beside the weights; copy it"
    ):
        load_model(folder)
    assert read_audio_vae(folder / "diffusion_pytorch_model.safetensors").model.latent_dim == 3
    shutil.rmtree(folder)
    file = write(folder, "diffusers") / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(
        CheckpointError, match="cannot be read as a checkpoint: its safetensors header or data is damaged"
    ):
        load_model(folder)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(CheckpointError, match="it is a Git LFS pointer; download the file that it points to"):
        load_model(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match="m contains no weights; give the file to read"):
        load_model(folder)


@pytest.mark.parametrize(
    ("change", "project", "message"),
    [
        ({"activation": "snake"}, "diffusers", "activation=snake: models of diffusers have activation=snake_beta"),
        ({"final_tanh": True}, "diffusers", "final_tanh=True: models of diffusers have final_tanh=False"),
        ({"base_channels": 8}, "diffusers", "base_channels=8 and latent_dim=3: in diffusers, base_channels is twice"),
        ({"dilations": (1, 2)}, "stable-audio-tools", r"dilations=\(1, 2\): models of stable-audio-tools have dil"),
        ({"padding": "floor"}, "stable-audio-tools", "padding=floor: models of stable-audio-tools"),
        ({}, None, "the model has activation='snake_beta', and the PyTorch system only 'snake'"),
    ],
)
def test_a_model_that_a_project_does_not_have_is_not_exported(tmp_path, change, project, message):
    oobleck = {"activation": "snake_beta", "posterior": "softplus", "padding": "ceil", "final_bias": False}
    small = {"base_channels": 6, "channel_mults": (1,), "strides": (3,), "latent_dim": 3}
    model = AudioVAE(**{**small, **oobleck, **change})
    target = tmp_path / {"diffusers": "out", None: "x.pt"}.get(project, "out.ckpt")
    write = functools.partial(export.export_for, project) if project else export.export_audio_vae
    with pytest.raises(CheckpointError, match=f"was not written: {message}"):
        write(model, random_variables(model), target, sample_rate=None)
    assert not list(tmp_path.iterdir())
