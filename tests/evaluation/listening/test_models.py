"""Models are found by their location and selected by name."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import GOLDEN, random_variables

from audiovae_jax import AudioVAE, Codec, Latents, save_model
from audiovae_jax.errors import CheckpointError, DataError
from audiovae_jax.evaluation.listening.models import Models, find

SMALL = AudioVAE(base_channels=2, channel_mults=(1, 2), strides=(2, 4), latent_dim=3, dilations=(1,))


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    root = tmp_path_factory.mktemp("template")
    for seed, name in enumerate(("one", "deeper/two")):
        save_model(SMALL, random_variables(SMALL, seed), root / name, sample_rate=8000)
    shutil.copy(GOLDEN / "lightning.ckpt", root / "old.ckpt")
    latents = Latents(np.zeros((1, 2, 3), np.float32), "0" * 16, 8, 8000, 8000, 16, 1)
    latents.save(root / "latents.safetensors")
    (root / "notes.txt").write_text("no model")
    (root / ".hidden").mkdir()
    shutil.copy(GOLDEN / "lightning.ckpt", root / ".hidden" / "old.ckpt")
    return root


@pytest.fixture
def folder(template, tmp_path):
    """Two saved models and a torch file, next to files that are not models."""
    return Path(shutil.copytree(template, tmp_path / "models"))


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


def test_parts_of_a_model_that_lead_out_of_the_folder_make_it_none(folder, tmp_path):
    (tmp_path / "elsewhere" / "300" / "state").mkdir(parents=True)
    (tmp_path / "elsewhere" / "model.json").write_text("{}")
    for name in ("a", "b", "c", "d/checkpoints/300", "e"):
        (folder / "runs" / name).mkdir(parents=True)
    os.symlink(tmp_path / "elsewhere", folder / "runs" / "a" / "checkpoints")
    os.symlink(tmp_path / "elsewhere" / "300", folder / "runs" / "b" / "300")
    os.symlink(tmp_path / "elsewhere" / "model.json", folder / "runs" / "c" / "model.json")
    os.symlink(tmp_path / "elsewhere" / "300" / "state", folder / "runs" / "d" / "checkpoints" / "300" / "state")
    (folder / "runs" / "kept" / "300" / "state").mkdir(parents=True)
    os.symlink(folder / "runs" / "kept", folder / "runs" / "e" / "checkpoints")
    assert [name for name in find(str(folder)) if name.startswith("runs")] == ["runs/e", "runs/kept"]


def test_names_that_are_no_text_are_escaped(folder):
    shutil.copytree(folder / "one", folder / "caf\udce9")  # bytes of Latin-1
    shutil.copy(GOLDEN / "lightning.ckpt", folder / "\udce9.ckpt")
    (folder / "\udce9.safetensors").write_bytes(b"nonsense")
    models = Models(str(folder), Codec.load)
    names = models.names()
    assert [json.loads(json.dumps(name).encode()) for name in names] == names
    assert {"caf\\udce9", "\\udce9.ckpt", "\\udce9.safetensors"} < set(names)
    assert models.codec("\\udce9.ckpt").fingerprint == models.codec("old.ckpt").fingerprint
    with pytest.raises(CheckpointError) as caught:  # Orbax cannot open such a name
        models.codec("caf\\udce9")
    assert str(folder) not in str(caught.value)
    assert list(find(str(folder / "caf\udce9"))) == ["caf\\udce9"]


def test_unreadable_audio_is_skipped(folder, monkeypatch):
    (folder / "private" / "checkpoints").mkdir(parents=True)
    plain = {name: getattr(Path, name) for name in ("is_file", "iterdir")}

    def refusing(name):
        def method(self):
            if "private" in self.parts:  # as for users other than root
                raise PermissionError(13, "Permission denied", str(self))
            return plain[name](self)

        return method

    for name in plain:
        monkeypatch.setattr(Path, name, refusing(name))
    assert list(find(str(folder))) == ["deeper/two", "old.ckpt", "one"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_pipes_are_no_models_and_are_not_waited_for(folder):
    for name in ("pipe.ckpt", "pipe.safetensors"):
        os.mkfifo(folder / name)
    (folder / "folder.ckpt").mkdir()
    os.symlink(folder / "nowhere", folder / "broken.ckpt")
    assert list(find(str(folder))) == ["deeper/two", "old.ckpt", "one"]


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


def test_a_new_model_is_found_and_a_damaged_one_is_an_error_with_its_name(folder):
    models = Models(str(folder), Codec.load)
    shutil.copytree(folder / "one", folder / "three")
    assert "three" in models.names()
    (folder / "three" / "model.json").write_text("{}")
    with pytest.raises(CheckpointError) as caught:
        models.codec("three")
    assert str(folder) not in str(caught.value)
    assert "three/model.json" in str(caught.value)
    assert models.codec("one").sample_rate == 8000
