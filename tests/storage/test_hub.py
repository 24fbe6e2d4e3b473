"""Models in repositories of the hub: what is downloaded, what is cached, and the errors."""

import json
import sys
import warnings

import golden_foreign as golden
import jax
import numpy as np
import pytest
import safetensors.numpy
from conftest import random_variables

from audiovae_jax import AudioVAE, Codec, load_model, save_model
from audiovae_jax.errors import CheckpointError
from audiovae_jax.evaluation.listening import models
from audiovae_jax.inference.inspection import inspect_model
from audiovae_jax.persistence.locate import pinned

MODEL = AudioVAE(base_channels=2, channel_mults=(1,), strides=(2,), latent_dim=3, dilations=(1,))


def pipeline(shards=1):
    """Files of a pipeline of diffusers, with other parts beside the model."""
    weights, _ = golden.load("diffusers")
    name = "diffusion_pytorch_model.safetensors"
    files = {
        "model_index.json": b"{}",
        "transformer/diffusion_pytorch_model.safetensors": b"large",
        "vae/config.json": json.dumps(golden.config("diffusers")).encode(),
    }
    if shards == 1:
        return files | {f"vae/{name}": safetensors.numpy.save(weights)}
    parts = {f"part{i}.safetensors": sorted(weights)[i::shards] for i in range(shards)}
    index = {"weight_map": {key: part for part, keys in parts.items() for key in keys}}
    files |= {f"vae/{part}": safetensors.numpy.save({k: weights[k] for k in keys}) for part, keys in parts.items()}
    return files | {f"vae/{name}.index.json": json.dumps(index).encode()}


def saved_model(folder):
    variables = random_variables(MODEL)
    save_model(MODEL, variables, folder, sample_rate=8000)
    return variables


def require_equal(ours, theirs):
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_only_the_models_files_are_downloaded_and_only_once(hub):
    commit = hub.commit("them/pipe", pipeline())
    model, variables = load_model("hf://them/pipe")
    assert sorted(set(hub.downloads)) == ["vae/config.json", "vae/diffusion_pytorch_model.safetensors"]
    assert len(hub.downloads) == 2
    for url in ("hf://them/pipe/vae", "hf://them/pipe/vae/", f"hf://them/pipe@{commit}", "hf://them/pipe@main"):
        again, same = load_model(url)
        assert again == model
        require_equal(same, variables)
    file = "hf://them/pipe/vae/diffusion_pytorch_model.safetensors"
    assert load_model(file)[0] == model  # with the config beside it
    assert len(hub.downloads) == 2


def test_shards_are_downloaded_with_their_index(hub):
    hub.commit("them/pipe", pipeline())
    hub.commit("them/sharded", pipeline(shards=2))
    plain, sharded = load_model("hf://them/pipe"), load_model("hf://them/sharded/vae")
    assert plain[0] == sharded[0]
    require_equal(plain[1], sharded[1])


def test_a_saved_model_is_opened_at_a_branch(hub, tmp_path):
    variables = saved_model(tmp_path / "first")
    old, branch = hub.commit("me/small", {"README.md": b""}), "refs/pr/1"
    (tmp_path / "demo.wav").write_bytes(b"RIFF")
    hub.upload("me/small", tmp_path, branch)
    codec = Codec.load(f"hf://me/small/first@{branch}")
    assert (codec.model.strides, codec.sample_rate) == ((2,), 8000)
    assert "demo.wav" not in hub.downloads
    require_equal(load_model(f"hf://me/small/first@{branch}")[1], variables)
    assert pinned("hf://me/small/first") == f"hf://me/small/first@{old}"
    assert pinned("runs/tiny") == "runs/tiny"
    url = f"hf://me/small/first@{branch}"
    described = inspect_model(url)
    assert (described["path"], described["kind"]) == (pinned(url), "saved model")
    assert models.find(url) == {"first": url}


def test_the_cache_is_used_without_a_connection(hub, monkeypatch):
    commit = hub.commit("them/pipe", pipeline())
    model, variables = load_model("hf://them/pipe")
    hub.stop()
    with pytest.warns(UserWarning, match=rf"hf://them/pipe: the hub cannot be reached \(.*; commit {commit} is used"):
        again, same = load_model("hf://them/pipe")
    assert again == model
    require_equal(same, variables)
    with pytest.raises(CheckpointError, match=r"^hf://me/other: the hub cannot be reached \(.*\), and the cache has"):
        load_model("hf://me/other")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_model("hf://them/pipe/vae")[0] == model
    assert pinned("hf://them/pipe") == f"hf://them/pipe@{commit}"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("hf://me", r"^hf://me: URLs of the hub have the form hf://owner/name\[/folder\]\[@revision\]$"),
        ("hf://me/none", r"^hf://me/none: there is no such repository, or it is private; check its name, or log in"),
        (
            "hf://me/gated",
            r"^hf://me/gated: access to this repository is gated; accept its terms on its page, then log",
        ),
        ("hf://me/m@v2", r"^hf://me/m@v2: its repository has no revision 'v2'; the URL ends with the revision, after"),
        (
            "hf://me/m/vae",
            r"^hf://me/m/vae: its repository has no such file or folder at commit \w{12}; it contains a, ",
        ),
        ("hf://me/m", r"^hf://me/m contains no model, but a, b.wav; give the folder of a saved model or of diffusers"),
        ("hf://me/m/a", r"^hf://me/m/a contains 2 checkpoints: x.ckpt, y.ckpt; give the file to read"),
    ],
)
def test_errors_name_the_url_and_the_remedy(hub, url, message):
    config = json.dumps(golden.config("stable_audio_tools")).encode()
    hub.commit("me/m", {"a/x.ckpt": b"1", "a/y.ckpt": b"2", "a/model_config.json": config, "b.wav": b""})
    hub.commit("me/gated", {"model.json": b"{}"})
    hub.gated.add("me/gated")
    with pytest.raises(CheckpointError, match=message):
        load_model(url)


def test_a_download_that_is_cut_off_is_reported_and_resumed(hub, monkeypatch):
    hub.commit("them/pipe", pipeline())
    hub.cut = "vae/diffusion_pytorch_model.safetensors"
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with pytest.raises(
        CheckpointError, match=r"^hf://them/pipe: diffusion_pytorch_model.safetensors was not downloaded "
    ):
        load_model("hf://them/pipe")
    hub.cut = None
    assert load_model("hf://them/pipe")[0].strides == tuple(golden.config("diffusers")["downsampling_ratios"])
    assert hub.downloads.count("vae/config.json") == 1


def test_a_damaged_file_is_named_in_the_cache_and_a_wrong_model_by_its_url(hub):
    files = pipeline()
    commit = hub.commit("them/pipe", files | {"vae/diffusion_pytorch_model.safetensors": b"damaged"})
    with pytest.raises(CheckpointError, match=rf"{commit}/vae/diffusion_pytorch_model.safetensors cannot be read as a"):
        load_model("hf://them/pipe")
    tensors = safetensors.numpy.save({"other": np.zeros(1, np.float32)})
    hub.commit("them/pipe", files | {"vae/diffusion_pytorch_model.safetensors": tensors})
    with pytest.raises(CheckpointError, match=r"^hf://them/pipe: there is no AudioVAE in it: no key begins with"):
        load_model("hf://them/pipe")


def test_without_the_package_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        CheckpointError, match=r"^hf://me/m: hf:// needs a package .*; pip install 'audiovae-jax\[hub\]'$"
    ):
        load_model("hf://me/m")


def test_only_push_to_hub_writes_there():
    with pytest.raises(CheckpointError, match="URLs can be written to; push_to_hub writes to the hub"):
        save_model(MODEL, random_variables(MODEL), "hf://me/m")
