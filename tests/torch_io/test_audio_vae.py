"""Models in torch files: every form, and every kind of error."""

import json

import flax.traverse_util
import golden_configs as names
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from conftest import GOLDEN, applied, random_variables

from audiovae_jax import AudioVAE
from audiovae_jax.errors import CheckpointError
from audiovae_jax.torch_io import export_audio_vae, import_audio_vae, layout, read_checkpoint
from audiovae_jax.torch_io.audio_vae import from_checkpoint
from audiovae_jax.torch_io.export import audio_vae_state_dict
from audiovae_jax.torch_io.files.writer import write_checkpoint


def channel_last(x):
    return jnp.asarray(np.moveaxis(x, 1, -1))


@pytest.fixture
def state_dict():
    return dict(read_checkpoint(GOLDEN / "save_model.pt")["model_state_dict"])


def _import(tmp_path, content, **options):
    write_checkpoint(tmp_path / "x.pt", content)
    return import_audio_vae(tmp_path / "x.pt", **options)


def _require_equal(variables, state_dict):
    ours = audio_vae_state_dict(variables)
    assert list(ours) == list(state_dict)
    for key, tensor in state_dict.items():
        np.testing.assert_array_equal(ours[key], tensor, err_msg=key)


@pytest.mark.parametrize("name", ["lightning.ckpt", "save_model.pt", "bare_legacy.pt"])
@pytest.mark.filterwarnings("ignore:.*does not contain 'model_config'")
def test_each_kind_of_file_gives_torchs_numbers(name):
    io = np.load(GOLDEN / "checkpoints.npz")
    model, variables = import_audio_vae(GOLDEN / name)
    output = applied(model, variables, channel_last(io["audio"]), deterministic=True)
    for attribute in ("z", "mean", "logvar"):
        expected = channel_last(io[attribute])
        np.testing.assert_allclose(getattr(output, attribute), expected, atol=1e-5, rtol=1e-5)
    decoded = applied(model, variables, channel_last(io["z"]), method="decode")
    np.testing.assert_allclose(decoded, channel_last(io["decoded"]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("prefix", ["", "model.", "module.", "_orig_mod.", "module.model.", "model._orig_mod."])
def test_prefixes_are_taken_off(tmp_path, state_dict, prefix):
    prefixed = {prefix + key: value for key, value in state_dict.items()}
    content = {"state_dict": prefixed, "model_config": dict(names.MICRO_MODEL)}
    _, variables = _import(tmp_path, content)
    _require_equal(variables, state_dict)


def test_the_newer_names_of_weight_norm(tmp_path, state_dict):
    renamed = {layout.parametrized_key(key): value for key, value in state_dict.items()}
    assert renamed.keys() != state_dict.keys()
    _, variables = _import(tmp_path, {"state_dict": renamed, "model_config": dict(names.MICRO_MODEL)})
    _require_equal(variables, state_dict)


def _folded(state_dict):
    folded = dict(state_dict)
    for key in [key for key in state_dict if key.endswith("weight_v")]:
        v, g = folded.pop(key), folded.pop(key.replace("weight_v", "weight_g"))
        norm = np.sqrt(np.sum(v.astype(np.float64) ** 2, axis=(1, 2), keepdims=True))
        folded[key.replace("weight_v", "weight")] = (g * v / norm).astype(np.float32)
    return folded


@pytest.mark.slow
def test_folded_weights_give_the_same_audio(tmp_path, state_dict):
    model, variables = _import(tmp_path, {"state_dict": state_dict, "model_config": dict(names.MICRO_MODEL)})
    folded = _folded(state_dict)
    folded["decoder.final_conv.1.weight"][0] = 0  # without direction
    _, from_folded = _import(tmp_path, {"state_dict": folded, "model_config": dict(names.MICRO_MODEL)})
    z = jax.random.normal(jax.random.key(0), (1, 9, 3))
    with_norm = applied(model, variables, z, method="decode")
    without = applied(model, from_folded, z, method="decode")
    np.testing.assert_allclose(without[..., 1], with_norm[..., 1], atol=1e-6)
    np.testing.assert_allclose(without[..., 0], state_dict["decoder.final_conv.1.bias"][0], atol=1e-6)


def test_other_floating_types_become_float32(tmp_path, state_dict):
    half = {key: value.astype(np.float16) for key, value in state_dict.items()}
    _, variables = _import(tmp_path, {"state_dict": half, "model_config": dict(names.MICRO_MODEL)})
    _require_equal(variables, {key: value.astype(np.float32) for key, value in half.items()})


def test_the_architecture_is_inferred_from_shapes_with_a_warning(tmp_path, state_dict):
    with pytest.warns(UserWarning, match="inferred") as warned:
        model, variables = _import(tmp_path, state_dict)
    (message,) = [str(w.message) for w in warned]
    for part in (
        "Checkpoint does not contain 'model_config'; inferred from its tensors: in_channels=2, base_channels=2",
        "channel_mults=(1, 2), strides=(2, 4), latent_dim=3, kernel_size=5, dilations=(1, 3) (the usual ones",
    ):
        assert part in message
    assert {key: getattr(model, key) for key in names.MICRO_MODEL} == names.MICRO_MODEL
    _require_equal(variables, state_dict)
    with pytest.warns(UserWarning, match=r"dilations=\(2, 5\) \(given\)"):
        model, _ = _import(tmp_path, state_dict, dilations=(2, 5))
    assert model.dilations == (2, 5)
    with pytest.raises(CheckpointError, match=r"dilations=\(1,\) should be 2 whole numbers"):
        _import(tmp_path, state_dict, dilations=(1,))


def _rename(state_dict):
    state_dict["encoder.input_convolution.bias"] = state_dict.pop("encoder.input_conv.bias")


def _remove(state_dict):
    del state_dict["decoder.blocks.1.upsample.0.alpha"]


def _add(state_dict):
    state_dict["decoder.extra.weight"] = np.zeros(3, np.float32)


def _transpose(state_dict):
    key = "encoder.blocks.1.downsample.1.weight_v"
    state_dict[key] = state_dict[key].transpose(1, 0, 2)


def _cast(state_dict):
    state_dict["encoder.input_conv.bias"] = np.array([1, 2], np.int64)


def _spoil(state_dict):
    state_dict["encoder.input_conv.bias"] = np.array([1, np.nan], np.float32)


WRONG = {
    "renamed": (
        _rename,
        r"missing: encoder.input_conv.bias\n  surplus: encoder.input_convolution.bias\nstrict=False imports",
    ),
    "missing": (_remove, "missing: decoder.blocks.1.upsample.0.alpha"),
    "surplus": (_add, "surplus: decoder.extra.weight"),
    "transposed": (
        _transpose,
        r"its model_config has channel_mults=\(1, 2\), but its tensors have channel_mults=\(1, 1\)",
    ),
    "dtype": (_cast, "unusable: encoder.input_conv.bias has dtype int64; it must be floating point"),
    "not a number": (_spoil, "unusable: encoder.input_conv.bias has 1 NaN or infinite values"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_state_dicts_are_refused_with_their_keys(tmp_path, state_dict, case):
    change, message = WRONG[case]
    change(state_dict)
    with pytest.raises(CheckpointError, match=message) as error:
        _import(tmp_path, {"state_dict": state_dict, "model_config": dict(names.MICRO_MODEL)})
    assert "x.pt" in str(error.value)


def test_a_misshapen_tensor_is_named_with_both_shapes(tmp_path, state_dict):
    key = "decoder.blocks.0.upsample.1.weight_v"
    state_dict[key] = state_dict[key].transpose(1, 0, 2)
    with pytest.raises(CheckpointError, match=rf"{key} has shape \(2, 4, 8\); here it is \(4, 2, 8\)"):
        _import(tmp_path, {"state_dict": state_dict, "model_config": dict(names.MICRO_MODEL)})


def test_a_config_that_disagrees_with_the_tensors_is_refused(tmp_path, state_dict):
    config = {**names.MICRO_MODEL, "latent_dim": 4}
    with pytest.raises(CheckpointError, match="its model_config has latent_dim=4, but its tensors have latent_dim=3"):
        _import(tmp_path, {"state_dict": state_dict, "model_config": config})
    with pytest.raises(CheckpointError, match="its model_config has unknown keys: depth"):
        _import(tmp_path, {"state_dict": state_dict, "model_config": {**names.MICRO_MODEL, "depth": 4}})
    with pytest.raises(CheckpointError, match="dilations=\\(1, 0\\) should be 2 whole numbers"):
        _import(tmp_path, {"state_dict": state_dict, "model_config": {**names.MICRO_MODEL, "dilations": (1, 0)}})


def test_dilations_are_read_given_or_assumed_with_a_warning(tmp_path, state_dict):
    config = {key: value for key, value in names.MICRO_MODEL.items() if key != "dilations"}
    content = {"state_dict": state_dict, "model_config": config | {"_target_": "src.model.AudioVAE"}}
    with pytest.warns(UserWarning, match=r"its model_config has no dilations: \(1, 3\) \(the usual ones"):
        _import(tmp_path, content)
    with pytest.warns(UserWarning, match=r"its model_config has no dilations: \(2, 5\) \(given\)"):
        assert _import(tmp_path, content, dilations=(2, 5))[0].dilations == (2, 5)
    content = {"state_dict": state_dict, "hyper_parameters": {"model_config": config | {"dilations": [2, 5]}}}
    assert _import(tmp_path, content)[0].dilations == (2, 5)
    with pytest.raises(CheckpointError, match=r"dilations=\(1, 3\) were given, but its model_config has \(2, 5\)"):
        _import(tmp_path, content, dilations=(1, 3))


def test_other_parts_of_a_file_are_named(tmp_path, state_dict):
    content = {f"model.{key}": value for key, value in state_dict.items()}
    content |= {f"ema_model.{key}": value for key, value in state_dict.items()}
    content |= {"discriminator.x": np.zeros(1, np.float32), "n_averaged": np.array(3)}
    with pytest.warns(UserWarning, match=rf"left out ema_model \({len(state_dict)} tensors\), which"):
        _import(tmp_path, {"state_dict": content, "model_config": dict(names.MICRO_MODEL)})


def test_claims_far_beyond_what_is_stored_are_refused(tmp_path, state_dict):
    wide = np.broadcast_to(np.float32(1), (4000, 2, 4))
    state_dict["encoder.blocks.0.downsample.1.weight_v"] = np.array(wide)
    state_dict["encoder.blocks.1.downsample.1.weight_v"] = np.array(np.broadcast_to(np.float32(1), (4000, 4, 8)))
    with pytest.raises(
        CheckpointError, match=r"tensors have [\d,]+ values, but the model that they describe would have"
    ):
        _import(tmp_path, {"state_dict": state_dict}, strict=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"latent_std": np.ones((1, 3, 1), np.int64)}, "unusable: latent_std has dtype int64"),
        ({"latent_std": -np.ones((1, 3, 1), np.float32)}, "unusable: latent_std has values that are not positive"),
        ({"latent_mean": np.ones((3, 1), np.float32)}, r"latent_mean has shape \(3, 1\); here it is \(1, 3, 1\)"),
        ({"decoder.window": np.ones(3, np.float32)}, "surplus: decoder.window"),
    ],
)
def test_statistics_and_constants_are_checked_too(tmp_path, state_dict, change, message):
    with pytest.raises(CheckpointError, match=message):
        _import(tmp_path, {"state_dict": state_dict | change, "model_config": dict(names.MICRO_MODEL)})


@pytest.mark.parametrize("config", [{"strides": np.array([2, 4])}, {"strides": 3}, 7, {"latent_dim": [[]]}])
def test_configs_of_any_kind_are_answered_with_one_error(tmp_path, state_dict, config):
    with pytest.raises(CheckpointError, match="its model_config"):
        _import(tmp_path, {"state_dict": state_dict, "model_config": config})


def test_statistics_that_disagree_are_refused(tmp_path, state_dict):
    content = {
        "model_state_dict": state_dict,
        "model_config": dict(names.MICRO_MODEL),
        "latent_statistics": {"latent_mean": state_dict["latent_mean"] + 1},
    }
    with pytest.raises(CheckpointError, match="its state dict and its latent_statistics have different latent_mean"):
        _import(tmp_path, content)


@pytest.mark.slow
def test_not_strict_imports_what_fits_and_reports_the_rest(tmp_path, state_dict):
    _remove(state_dict)
    _add(state_dict)
    _cast(state_dict)
    with pytest.warns(UserWarning, match="left out") as warned:
        model, variables = _import(
            tmp_path, {"state_dict": state_dict, "model_config": dict(names.MICRO_MODEL)}, strict=False
        )
    (message,) = [str(w.message) for w in warned]
    for part in (
        "missing: decoder.blocks.1.upsample.0.alpha",
        "surplus: decoder.extra",
        "unusable: encoder.input_conv.b",
    ):
        assert part in message
    np.testing.assert_array_equal(variables["params"]["decoder"]["blocks_1"]["snake"]["alpha"], 1)
    np.testing.assert_array_equal(
        variables["params"]["encoder"]["input_conv"]["g"], state_dict["encoder.input_conv.weight_g"].reshape(-1)
    )
    model.apply(variables, jnp.zeros((1, 64, 2)), deterministic=True)
    encoder = {key: value for key, value in state_dict.items() if key.startswith("encoder.")}
    with pytest.raises(CheckpointError, match="no tensor of the decoder fits"):
        _import(tmp_path, {"state_dict": encoder, "model_config": dict(names.MICRO_MODEL)}, strict=False)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, "it contains no state dict, only epoch"),
        ({"state_dict": 3}, "its state_dict is a int, not a dict"),
        ({"state_dict": {"resnet.weight": np.zeros(3, np.float32)}}, "there is no AudioVAE in it: .* only with resnet"),
        ({"state_dict": {"encoder.x": 3}}, "the state dict's 'encoder.x' is a int, not a tensor"),
        ({"state_dict": {"encoder.x": np.zeros(3, np.float32)}}, "has no weight of encoder.input_conv"),
    ],
)
def test_files_without_a_model_are_refused(tmp_path, content, message):
    with pytest.raises(CheckpointError, match=message):
        _import(tmp_path, content)


def test_a_wrapped_and_a_bare_tensor_of_one_name_are_refused(tmp_path, state_dict):
    state_dict["module.latent_mean"] = state_dict["latent_mean"]
    with pytest.raises(CheckpointError, match="has 'latent_mean' twice"):
        _import(tmp_path, {"state_dict": state_dict, "model_config": dict(names.MICRO_MODEL)})


def _model(seed=0):
    model = AudioVAE(**names.MICRO_MODEL, encoder_frozen=True)
    return model, random_variables(model, seed)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_model_goes_to_torch_and_back_bit_for_bit(tmp_path, suffix):
    model, variables = _model()
    path = tmp_path / f"x{suffix}"
    export_audio_vae(model, variables, path, epoch=2, global_step=7, metadata={"note": "ü", "loss": 0.5})
    again = from_checkpoint(read_checkpoint(path))
    assert again.model == model
    assert (again.epoch, again.global_step, again.metadata) == (2, 7, {"note": "ü", "loss": 0.5})
    jax.tree.map(np.testing.assert_array_equal, again.variables, variables)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_layout_of_save_model_is_kept_key_by_key(tmp_path):
    model, variables = _model()
    export_audio_vae(model, variables, tmp_path / "x.pt", epoch=2, global_step=7, metadata={"a": 1})
    ours = read_checkpoint(tmp_path / "x.pt")
    theirs = read_checkpoint(GOLDEN / "save_model.pt")
    assert list(ours) == [key for key in theirs if key not in ("optimizer_state_dict", "scheduler_state_dict")]
    assert list(ours["model_state_dict"]) == list(theirs["model_state_dict"])
    for key, tensor in theirs["model_state_dict"].items():
        assert ours["model_state_dict"][key].shape == tensor.shape
    assert list(ours["model_config"].items()) == list(theirs["model_config"].items())
    assert ours["encoder_frozen"] is True


def test_kernels_without_weight_norm_are_exported_with_it(tmp_path):
    _, variables = _model()
    folded = _folded(audio_vae_state_dict(variables))
    params = {}
    for path, array in flax.traverse_util.flatten_dict(variables["params"]).items():
        if path[-1] != "g":
            leaf = (*path[:-1], "kernel") if path[-1] == "v" else path
            params[leaf] = layout.from_torch(leaf, folded[layout.torch_key(leaf)], array.shape)
    kernels = {**variables, "params": flax.traverse_util.unflatten_dict(params)}
    model = AudioVAE(**names.MICRO_MODEL, weight_norm=False)
    export_audio_vae(model, kernels, tmp_path / "x.safetensors")
    again, imported = import_audio_vae(tmp_path / "x.safetensors")
    z = jax.random.normal(jax.random.key(0), (1, 9, 3))
    np.testing.assert_allclose(
        applied(again, imported, z, method="decode"), applied(model, kernels, z, method="decode"), atol=1e-6
    )


@pytest.mark.slow
def test_a_failed_export_leaves_no_file(tmp_path):
    model, variables = _model()
    with pytest.raises(CheckpointError, match=r"x.bin: the name must end in .pt or .safetensors"):
        export_audio_vae(model, variables, tmp_path / "x.bin")
    for wrong in (
        random_variables(AudioVAE(**{**names.MICRO_MODEL, "latent_dim": 5})),
        {"params": variables["params"]},
    ):
        with pytest.raises(
            CheckpointError, match=r"x.pt was not written: .* in the variables and .* in the model; give"
        ):
            export_audio_vae(model, wrong, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="safetensors contain only weights"):
        export_audio_vae(model, variables, tmp_path / "x.safetensors", optimizer_state={})
    with pytest.raises(CheckpointError, match=r"x.pt was not written: metadata.f is a object"):
        export_audio_vae(model, variables, tmp_path / "x.pt", metadata={"f": object()})
    itself = {}
    itself["itself"] = itself
    for suffix in (".pt", ".safetensors"):
        with pytest.raises(CheckpointError, match="was not written"):
            export_audio_vae(model, variables, tmp_path / f"x{suffix}", metadata=itself)
    with pytest.raises(CheckpointError, match="an integer of 376 bytes"):
        export_audio_vae(model, variables, tmp_path / "x.pt", metadata={"n": 2**3000})
    assert not list(tmp_path.iterdir())


def test_safetensors_of_others_are_read_without_a_config(tmp_path, state_dict):
    safetensors.numpy.save_file({f"model.{k}": v for k, v in state_dict.items()}, tmp_path / "x.safetensors")
    with pytest.warns(UserWarning, match="does not contain 'model_config'"):
        _, variables = import_audio_vae(tmp_path / "x.safetensors")
    _require_equal(variables, state_dict)
    broken = {"model_config": json.dumps({"latent_dim": 3})[:-1]}
    safetensors.numpy.save_file(state_dict, tmp_path / "y.safetensors", metadata=broken)
    with pytest.raises(CheckpointError, match="its metadata has a model_config that is not JSON"):
        import_audio_vae(tmp_path / "y.safetensors")


def test_damaged_safetensors_of_ours_and_odd_metadata_of_others(tmp_path, state_dict):
    model, variables = _model()
    path = tmp_path / "x.safetensors"
    export_audio_vae(model, variables, path)
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="does not match its CRC-32"):
        import_audio_vae(path)
    metadata = {"metadata": "my vae, v2", "epoch": "last", "model_config": "[" * 100_000}
    safetensors.numpy.save_file(state_dict, path, metadata=metadata)
    with pytest.raises(CheckpointError, match="its metadata has a model_config that is not JSON"):
        import_audio_vae(path)
    del metadata["model_config"]
    safetensors.numpy.save_file(state_dict, path, metadata=metadata)
    with pytest.warns(UserWarning, match="inferred"):
        import_audio_vae(path)


def test_torch_loads_what_is_exported_strictly_and_computes_the_same(tmp_path):
    torch = pytest.importorskip("torch")
    import torch_reference

    model, variables = _model()
    export_audio_vae(model, variables, tmp_path / "x.pt", metadata={"a": 1})
    loaded = torch.load(tmp_path / "x.pt")  # weights_only
    theirs = torch_reference.AudioVAE(**loaded["model_config"])
    theirs.load_state_dict(loaded["model_state_dict"], strict=True)
    audio = 0.3 * jax.random.normal(jax.random.key(1), (2, 331, 2))
    with torch.no_grad():
        reconstruction, *_ = theirs(torch.tensor(np.moveaxis(np.asarray(audio), -1, 1)))
    ours = applied(model, variables, audio, deterministic=True).reconstruction
    np.testing.assert_allclose(channel_last(reconstruction.numpy()), ours, atol=1e-5)
    # And back: what torch saves equals the exported file.
    torch.save({"state_dict": theirs.state_dict(), "model_config": loaded["model_config"]}, tmp_path / "y.pt")
    _, again = import_audio_vae(tmp_path / "y.pt")
    jax.tree.map(np.testing.assert_array_equal, again, variables)
