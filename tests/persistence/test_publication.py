"""Models are written to the hub with a card, and read back."""

import json

import command_line
import hub_server
import jax
import numpy as np
import pytest
from conftest import random_variables

from audiovae_jax import AudioVAE, load_model, load_training_state, push_to_hub, save_model
from audiovae_jax.errors import CheckpointError
from audiovae_jax.persistence import saved_model
from audiovae_jax.persistence.publication import model_card

MODEL = AudioVAE(base_channels=2, channel_mults=(1,), strides=(2,), latent_dim=3, dilations=(1,))


@pytest.fixture
def model(tmp_path, monkeypatch):
    """The folder of a saved model; a token is set."""
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    metadata = {"val_loss": 0.125, "notes": "a | b", "imported_from": "old.ckpt"}
    save_model(MODEL, random_variables(MODEL), tmp_path / "m", sample_rate=8000, global_step=7, metadata=metadata)
    return tmp_path / "m"


def require_same(path, url):
    ours, theirs = (saved_model.open_model(place, training=True) for place in (path, url))
    assert ours.model == theirs.model
    for name in ("sample_rate", "global_step", "metadata"):
        assert getattr(ours, name) == getattr(theirs, name)
    jax.tree.map(np.testing.assert_array_equal, ours.variables, theirs.variables)


@pytest.mark.parametrize("url", ["hf://me/new", "hf://me/new/models/small"])
def test_a_pushed_model_is_loaded_bit_for_bit(hub, model, url):
    pushed = push_to_hub(model, url, license="mit", private=True)
    assert pushed.address == f"{hub.url}/me/new"
    assert hub.repositories["me/new"]["refs"]["main"] == pushed.commit
    assert hub.repositories["me/new"]["private"]
    require_same(model, url)
    require_same(model, f"{url}@{pushed.commit}")


def test_the_card_describes_the_model(hub, model):
    pushed = push_to_hub(model, "hf://me/new", license="mit")
    card = hub.repositories["me/new"]["commits"][pushed.commit]["README.md"].decode()
    header = card.split("---\n")[1]
    assert header == (
        'library_name: audiovae_jax\npipeline_tag: audio-to-audio\ntags:\n- audio\n- vae\n- jax\nlicense: "mit"\n'
    )
    for line in (
        "# new", "| Sample rate | 8,000 Hz |", "| Channels | 2 |", "| Hop | 2 samples |",
        "| Latent | 3 values, 4000 per second |", "| Step | 7 |", "| Imported from | `old.ckpt` |",
        "| `val_loss` | 0.125 |", 'codec = Codec.load("hf://me/new")',
    ):  # fmt: skip
        assert line in card.splitlines(), line
    unlicensed = model_card(saved_model.open_model(model), "hf://me/new")
    assert "license" not in unlicensed
    assert "notes" not in unlicensed


def test_a_second_push_replaces_the_model_and_keeps_an_edited_card(hub, model, tmp_path):
    first = push_to_hub(model, "hf://me/new").commit
    files = hub.repositories["me/new"]["commits"][first] | {"demo.wav": b"RIFF", "optimizer/old": b"1"}
    hub.commit("me/new", files | {"README.md": b"# Mine"})
    other = AudioVAE(base_channels=4, channel_mults=(1,), strides=(2,), latent_dim=3, dilations=(1,))
    save_model(other, random_variables(other), tmp_path / "other")
    second = push_to_hub(tmp_path / "other", "hf://me/new").commit
    written = hub.repositories["me/new"]["commits"][second]
    assert (written["README.md"], written["demo.wav"]) == (b"# Mine", b"RIFF")
    assert "optimizer/old" not in written
    assert load_model("hf://me/new")[0] == other
    require_same(model, f"hf://me/new@{first}")
    assert load_training_state("hf://me/new")["global_step"] is None
    third = push_to_hub(model, "hf://me/new").commit
    arrays = {name for name in written if "/d/" in name}  # a new name at each write
    written = hub.repositories["me/new"]["commits"][third]
    assert arrays
    assert not arrays & written.keys()
    assert {name for name in written if "/" not in name} == {name for name in files if "/" not in name}
    require_same(model, "hf://me/new")


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("somewhere", "^somewhere is not a URL of the hub; give hf://owner/name$"),
        ("hf://me/new", r"^hf://me/new: access is refused \(.*\); log in with `hf auth login`, or set HF_TOKEN$"),
    ],
)
def test_a_push_that_fails_is_explained(hub, model, monkeypatch, url, message):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(CheckpointError, match=message):
        push_to_hub(model, url)
    assert hub.repositories == {}


@pytest.mark.slow
def test_the_command_prints_the_address_and_the_commit(hub, model, tmp_path):
    done = command_line.run("push_to_hub", model, "hf://me/new", "--private", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.url}/me/new: commit {hub.repositories['me/new']['refs']['main']}\n"
    described = command_line.run("inspect_model", "hf://me/new", "--json", cwd=tmp_path)
    assert json.loads(described.stdout)["sample rate (Hz)"] == 8000
