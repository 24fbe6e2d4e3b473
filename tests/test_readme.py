"""The README's Python is what works here: its examples of saving, loading and using a model, run in order."""

import functools
import re
import shutil
from pathlib import Path

import golden_configs as names
import jax
import numpy as np
import optax
import pytest
from conftest import GOLDEN, SMALL_DISCRIMINATOR, SMALL_MODEL, applied, initialised, random_variables

import audiovae_jax
from audiovae_jax import AudioVAE, EnCodecDiscriminator, save_model

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKAGE = ROOT / "audiovae_jax"


def _blocks(heading, page=README):
    """The Python blocks of a section, made small: the published width takes minutes to initialise."""
    section = re.split(r"^#+ ", page.read_text(), flags=re.MULTILINE)
    (text,) = [part for part in section if part.startswith(heading)]
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    return [b.replace("latent_dim=64, base_channels=128", "latent_dim=3, base_channels=2") for b in blocks]


@pytest.fixture
def namespace(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("old.ckpt", "epoch=99.ckpt"):
        shutil.copy(GOLDEN / "lightning.ckpt", name)
    model = AudioVAE(**SMALL_MODEL)
    save_model(model, random_variables(model), "runs/tiny", sample_rate=44100)
    optimizer = optax.adamw(1e-3)
    return {
        "jax": jax,
        "audio": (0.1 * np.random.default_rng(0).standard_normal((1, 3000, 2))).astype(np.float32),
        "discriminator": EnCodecDiscriminator(**names.MICRO_DISCRIMINATOR),
        "optimizer": optimizer,
        "opt_state": None,
    }


def test_the_codec(namespace):
    block, saving = _blocks("Use a trained model")
    exec(block, namespace)
    assert namespace["audio"].shape == (1, 3000, 2)
    assert namespace["output"].reconstruction.shape == (1, 3000, 2)
    np.testing.assert_array_equal(np.asarray(namespace["latents"]), namespace["latents"].z)
    assert Path("latents.safetensors").exists()
    exec(saving, namespace)
    assert namespace["model"].latent_dim == 3


def test_saving_and_loading(namespace):
    (block,) = _blocks("Save and load", PACKAGE / "persistence" / "README.md")
    imports, rest = block.split("\n\n", 1)
    make, load = rest.split("\n\n", 1)
    exec(imports, namespace)
    lines = make.splitlines()
    exec("\n".join(lines[:2]), namespace)
    namespace["opt_state"] = namespace["optimizer"].init(namespace["variables"]["params"])
    exec("\n".join(lines[2:]), namespace)
    exec(load, namespace)
    state = namespace["state"]
    assert (state["epoch"], state["global_step"]) == (50, 25000)
    assert state["metadata"] == {"val_loss": 0.123, "notes": "Best model so far"}
    assert jax.tree.structure(state["optimizer_state"]) == jax.tree.structure(namespace["opt_state"])
    assert isinstance(namespace["model"], AudioVAE)


def test_coming_from_pytorch(namespace):
    for block in _blocks("Coming from PyTorch, and going back", PACKAGE / "torch_io" / "README.md"):
        exec(block, namespace)
    assert Path("back.pt").exists()


def test_the_losses_alone(namespace):
    namespace["real_audio"] = namespace["fake_audio"] = jax.numpy.asarray(namespace["audio"])
    discriminator = EnCodecDiscriminator(**SMALL_DISCRIMINATOR)
    params = initialised(discriminator, namespace["real_audio"])
    namespace["discriminator"] = functools.partial(applied, discriminator, params)
    namespace["global_step"] = 6000
    (block,) = _blocks("Use the parts alone")
    exec(block, namespace)
    assert float(namespace["d"]["d_loss"]) > 0


def test_links_lead_somewhere():
    pages = [README, *PACKAGE.glob("*/README.md")]
    assert len(pages) == 13
    for page in pages:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_public_names_are_there():
    for name in (
        "AudioVAE", "EnCodecDiscriminator", "AdversarialLossCalculator", "save_model", "load_model",
        "load_training_state", "load_from_lightning_checkpoint", "Codec", "Latents",
    ):  # fmt: skip
        assert getattr(audiovae_jax, name).__doc__
