"""Models are found by where they lie, known by name, and nothing else is one."""

import os
import shutil

import numpy as np
import pytest
from conftest import GOLDEN, random_variables

from audiovae_jax import AudioVAE, Codec, Latents, save_model
from audiovae_jax.errors import CheckpointError, DataError
from audiovae_jax.serving.models import Models, find

SMALL = AudioVAE(base_channels=2, channel_mults=(1, 2), strides=(2, 4), latent_dim=3, dilations=(1,))


@pytest.fixture
def folder(tmp_path):
    """Two saved models and a torch file, with what is none beside them."""
    root = tmp_path / "models"
    for seed, name in enumerate(("one", "deeper/two")):
        save_model(SMALL, random_variables(SMALL, seed), root / name, sample_rate=8000)
    shutil.copy(GOLDEN / "lightning.ckpt", root / "old.ckpt")
    latents = Latents(np.zeros((1, 2, 3), np.float32), "0" * 16, 8, 8000, 8000, 16, 1)
    latents.save(root / "latents.safetensors")
    (root / "notes.txt").write_text("no model")
    (root / ".hidden").mkdir()
    shutil.copy(GOLDEN / "lightning.ckpt", root / ".hidden" / "old.ckpt")
    return root


def test_a_folder_is_searched_and_a_model_is_itself(folder):
    assert list(find(str(folder))) == ["deeper/two", "old.ckpt", "one"]
    assert find(str(folder / "one")) == {"one": str(folder / "one")}
    assert list(find(str(folder / "old.ckpt"))) == ["old.ckpt"]
    workdir = folder / "runs" / "tiny"
    (workdir / "checkpoints" / "300" / "state").mkdir(parents=True)
    assert find(str(workdir)) == {"tiny": str(workdir)}
    assert find(str(workdir / "checkpoints")) == {"checkpoints": str(workdir / "checkpoints")}
    assert list(find(str(folder))) == ["deeper/two", "old.ckpt", "one", "runs/tiny"]


def test_where_there_is_none(tmp_path):
    with pytest.raises(CheckpointError, match="no model in this folder"):
        find(str(tmp_path))
    with pytest.raises(CheckpointError, match="nowhere: there is no such file or folder"):
        find(str(tmp_path / "nowhere"))


def test_links_that_lead_out_of_the_folder_are_passed_over(folder, tmp_path):
    save_model(SMALL, random_variables(SMALL), tmp_path / "private", sample_rate=8000)
    shutil.copy(GOLDEN / "lightning.ckpt", tmp_path / "private.ckpt")
    os.symlink(tmp_path / "private", folder / "link")
    os.symlink(tmp_path / "private.ckpt", folder / "link.ckpt")
    os.symlink(folder / "one", folder / "same")
    assert list(find(str(folder))) == ["deeper/two", "old.ckpt", "one", "same"]


def test_a_name_is_looked_up_and_never_opened(folder):
    opened = []
    models = Models(str(folder), opened.append)
    for name in (
        "", ".", "..", "../private", "one/../../private", "/etc", "./one", "one/", "ONE", "%2e%2e/private", None, 3,
        ["one"], {"path": "one"}, "file:///etc/passwd", "s3://bucket/model", "one\0", "x" * 5000,
    ):  # fmt: skip
        with pytest.raises(DataError, match="there is no model .* here"):
            models.codec(name)
    assert opened == []


def test_the_last_two_are_kept_and_one_that_changed_is_loaded_again(folder):
    opened = []

    def load(path):
        opened.append(os.path.basename(path))
        return path

    models = Models(str(folder), load)
    for name in ("one", "deeper/two", "one", "old.ckpt", "one", "deeper/two"):
        models.codec(name)
    assert opened == ["one", "two", "old.ckpt", "two"]
    os.utime(folder / "deeper" / "two" / "model.json", (1, 1))
    models.codec("deeper/two")
    assert opened[4:] == ["two"]


def test_a_model_that_appears_is_found_and_a_damaged_one_is_told_by_its_name(folder):
    models = Models(str(folder), Codec.load)
    shutil.copytree(folder / "one", folder / "three")
    assert "three" in models.names()
    (folder / "three" / "model.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        models.codec("three")
    assert str(folder) not in str(caught.value)
    assert "three/model.json" in str(caught.value)
    assert models.codec("one").sample_rate == 8000
