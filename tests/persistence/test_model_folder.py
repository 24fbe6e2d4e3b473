"""Storage of a saved model: invalid models are not written, and a replaced model is read consistently."""

import concurrent.futures
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import random_variables

from audiovae_jax import AudioVAE, load_model, load_training_state, save_model
from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence import init_source
from audiovae_jax.storage import array_store, bucket_path

SMALL = {"base_channels": 2, "channel_mults": (1,), "strides": (2,), "latent_dim": 3, "dilations": (1,)}
MODEL = AudioVAE(**SMALL, dtype="float32")


def alternative(number: int) -> dict:
    """Variables that all have the same value."""
    return jax.tree.map(lambda x: np.full(x.shape, 1 + number, np.float32), MODEL.shapes())


def _same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def _with_more(tree):
    return {**tree, "encoder": {**tree["encoder"], "surplus": jnp.zeros(3)}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda v: jax.tree.map(lambda x: x.astype(jnp.bfloat16), v),
            r"latent_statistics/latent_mean is bfloat16\[3\] in the variables and float32\[3\] in the model; convert "
            r"the variables, as in jax\.tree\.map\(lambda x: x\.astype\('float32'\), variables\)",
        ),
        (
            lambda v: jax.tree.map(lambda x: np.asarray(x, np.float64), v),
            r"latent_mean is float64\[3\] in the variables",
        ),
        (
            lambda _: random_variables(AudioVAE(**{**SMALL, "latent_dim": 4})),
            r"is float32\[4\] in the variables and float32\[3\] in the model; "
            "give the model that the variables belong to",
        ),
        (
            lambda v: {"params": v["params"]},
            "the variables have no collection 'latent_statistics'; give those",
        ),
        (
            lambda v: {"latent_statistics": v["latent_statistics"]},
            "the variables have no collection 'params'",
        ),
        (lambda v: {**v, "cache": {}}, "the variables have a collection 'cache'; drop it"),
        (
            lambda v: {**v, "params": _with_more(v["params"])},
            r"params/encoder/surplus is float32\[3\] in the variables and absent in the model; .*no other arrays",
        ),
        (lambda v: {**v, "latent_statistics": {}}, r"latent_mean is absent in the variables and float32\[3\] in the"),
        (lambda v: {**v, "params": {**v["params"], "encoder": 1.0}}, "its trees contain other values than arrays"),
    ],
)
def test_invalid_models_are_not_written(tmp_path, change, reason):
    variables = random_variables(MODEL)
    save_model(MODEL, variables, tmp_path / "m")
    with pytest.raises(CheckpointError, match=f"m was not written: .*{reason}"):
        save_model(MODEL, change(variables), tmp_path / "m")
    assert _same(load_model(tmp_path / "m")[1], variables)
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.slow
def test_a_model_that_is_being_replaced_is_loaded_consistently(tmp_path):
    """As by a user who listens to a model while a script saves it again and again."""
    path = str(tmp_path / "m")
    save_model(MODEL, alternative(0), path, global_step=0)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        writer = pool.submit(
            lambda: [save_model(MODEL, alternative(i % 2), path, global_step=i % 2) for i in range(30)]
        )
        loads, failed, seen = 0, [], set()
        while not writer.done():
            loads += 1
            try:
                seen.add(load_training_state(path)["global_step"])
                for variables in (load_model(path)[1], init_source.read(path, ()).parts):
                    assert any(_same(variables, alternative(number)) for number in (0, 1))
            except CheckpointError as error:
                failed.append(str(error))
    writer.result()
    assert not failed, f"{len(failed)} of {loads} loads failed: {failed[0]}"
    assert seen == {0, 1}


def test_what_is_damaged_is_read_once(tmp_path, monkeypatch):
    save_model(MODEL, random_variables(MODEL), tmp_path / "m")
    shutil.rmtree(tmp_path / "m" / "model" / "d")
    read, times = array_store.read_tree, []

    def counted(*args, **options):
        times.append(args)
        return read(*args, **options)

    monkeypatch.setattr(array_store, "read_tree", counted)
    with pytest.raises(CheckpointError, match="m/model is damaged"):
        load_model(tmp_path / "m")
    assert len(times) == 1


@pytest.mark.slow
def test_a_model_in_a_bucket_is_written_and_replaced(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = random_variables(MODEL)
    url = f"{bucket}/models/m"
    save_model(MODEL, variables, url, global_step=1, metadata={"note": "ü"}, optimizer_state={"count": jnp.ones(())})
    assert not (tmp_path / "s3:").exists()
    model, there = load_model(url)
    assert model == MODEL
    assert _same(there, variables)
    state = load_training_state(url)
    assert (state["global_step"], state["metadata"]) == (1, {"note": "ü"})
    changed = jax.tree.map(lambda x: x + 1, variables)
    before = set((bucket / "models" / "m").files())
    save_model(MODEL, changed, url)
    assert _same(load_model(url)[1], changed)
    assert before & set((bucket / "models" / "m").files()) == {"model.json"}  # the previous arrays are removed
    # The same model, copied to a disk.
    (bucket / "models" / "m").download(tmp_path / "copy")
    assert _same(load_model(tmp_path / "copy")[1], changed)


@pytest.mark.slow
def test_an_upload_that_fails_keeps_what_was_in_the_bucket(bucket, monkeypatch):
    variables = random_variables(MODEL)
    url = f"{bucket}/m"
    upload_file = bucket_path.BucketPath.upload_file

    def cut_off(path, file):
        if file.stat().st_size > 1000:
            raise OSError(5, "the line is cut")
        upload_file(path, file)

    with monkeypatch.context() as patch:
        patch.setattr(bucket_path.BucketPath, "upload_file", cut_off)
        with pytest.raises(CheckpointError, match="m was not written: the line is cut"):
            save_model(MODEL, variables, url)
    with pytest.raises(CheckpointError):
        load_model(url)
    save_model(MODEL, variables, url)  # over the leftovers of the first
    with monkeypatch.context() as patch:
        patch.setattr(bucket_path.BucketPath, "upload_file", cut_off)
        with pytest.raises(CheckpointError, match="m was not written: the line is cut"):
            save_model(MODEL, jax.tree.map(lambda x: x + 1, variables), url)
    assert _same(load_model(url)[1], variables)


@pytest.mark.slow
def test_a_model_that_is_replaced_in_a_bucket_while_it_is_read_is_read_again(bucket, monkeypatch):
    url = f"{bucket}/m"
    save_model(MODEL, alternative(0), url)
    download = bucket_path.BucketPath.download
    replacements = [1]

    def replaced_first(path, folder):
        if replacements:
            save_model(MODEL, alternative(replacements.pop()), url)
        download(path, folder)

    monkeypatch.setattr(bucket_path.BucketPath, "download", replaced_first)
    assert _same(load_model(url)[1], alternative(1))
    assert not replacements


def test_a_url_that_cannot_be_written_to_is_refused_before_anything_is_done(bucket, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    variables = random_variables(MODEL)
    (bucket / "songs" / "a.wav").write_text("precious")
    for url, reason in (
        (f"{bucket}/songs", "exists and is not a saved model"),
        ("s3://there-is-no-such-bucket/m", "cannot be written"),
        ("https://example.org/m", "cannot be written: only s3:// and gs:// URLs"),
        (Path("s3://bucket/m"), "cannot be written: it is a URL"),
    ):
        with pytest.raises(CheckpointError, match=reason):
            save_model(MODEL, variables, url)
    assert [path.name for path in tmp_path.iterdir()] == []
