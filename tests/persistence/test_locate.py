"""The kind of a path: one answer, on disk and in a bucket."""

import os
import shutil

import numpy as np
import pytest
from conftest import GOLDEN, random_variables

from audiovae_jax import AudioVAE, Latents, load_model, save_model
from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence.locate import Kind, Place, locate, locate_model

MODEL = AudioVAE(base_channels=2, channel_mults=(1,), strides=(2,), latent_dim=3, dilations=(1,))


@pytest.fixture
def folder(trained_run, tmp_path):
    """A folder with one path of each kind."""
    root = tmp_path / "all"
    save_model(MODEL, random_variables(MODEL), root / "saved")
    shutil.copytree(trained_run[0] / "checkpoints", root / "run" / "checkpoints")
    (root / "run" / "config.json").write_text("{}")
    shutil.copy(GOLDEN / "lightning.ckpt", root / "old.ckpt")
    Latents(np.zeros((1, 2, 3), np.float32), "0" * 16, 8, 8000, 8000, 16, 1).save(root / "latents.safetensors")
    (root / "damaged.safetensors").write_bytes(b"\xff" * 20)
    (root / "damaged" / "checkpoints" / "3" / "run").mkdir(parents=True)
    (root / "damaged" / "checkpoints" / "3" / "run" / "metadata").write_text("{")
    (root / "songs" / "3").mkdir(parents=True)
    (root / "songs" / "3" / "a.wav").write_bytes(b"RIFF")
    return root


def _expected(root):
    steps = root / "run" / "checkpoints"
    return {
        "nowhere": Place(root / "nowhere", Kind.NOTHING),
        "saved": Place(root / "saved", Kind.SAVED_MODEL),
        "run": Place(root / "run", Kind.WORKDIR, steps),
        "run/checkpoints": Place(steps, Kind.WORKDIR, steps),
        "run/checkpoints/2": Place(steps / "2", Kind.CHECKPOINT, steps, 2),
        "damaged": Place(root / "damaged", Kind.WORKDIR, root / "damaged" / "checkpoints"),
        "old.ckpt": Place(root / "old.ckpt", Kind.TORCH_FILE),
        "latents.safetensors": Place(root / "latents.safetensors", Kind.LATENTS),
        "damaged.safetensors": Place(root / "damaged.safetensors", Kind.TORCH_FILE),
        "run/config.json": Place(root / "run" / "config.json", Kind.TORCH_FILE),
        "songs": Place(root / "songs", Kind.OTHER),
        "run/checkpoints/2/state": Place(steps / "2" / "state", Kind.OTHER),
    }


def test_each_kind_on_disk(folder):
    for name, place in _expected(folder).items():
        assert locate(str(folder / name)) == place, name
    with pytest.raises(CheckpointError, match=r"https://a/b: only s3:// and gs:// URLs can"):
        locate("https://a/b")


@pytest.mark.slow
def test_each_kind_in_a_bucket(folder, bucket):
    bucket.upload(folder)
    for name, place in _expected(bucket).items():
        assert locate(f"{bucket}/{name}") == place, name


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert locate(tmp_path / "pipe.safetensors").kind is Kind.OTHER


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere", "nowhere: there is no such file or folder"),
        ("songs", "songs contains no checkpoint; give a training workdir, one of"),
        ("latents.safetensors", "latents.safetensors contains latents; give the model that encoded them"),
    ],
)
def test_a_path_without_a_model_is_refused_with_the_path_as_a_field(folder, name, message):
    path = str(folder / name)
    for read in (locate_model, load_model):
        with pytest.raises(CheckpointError, match=message) as refused:
            read(path)
        assert str(refused.value.path) == path
        assert str(refused.value) == f"{path}{refused.value.problem}"
