"""The READMEs' Python code runs when pasted: the blocks of a page in order, in one new namespace."""

import re
import shutil
from pathlib import Path

import golden_configs as names
import hub_server
import jax
import numpy as np
import pytest
import soundfile
from conftest import GOLDEN, SMALL_DISCRIMINATOR, SMALL_MODEL, random_variables

import audiovae_jax
from audiovae_jax import AudioVAE, save_model

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKAGE = ROOT / "audiovae_jax"
_DISCRIMINATORS = {  # by page: a small ensemble with every part, and the golden file's ensemble
    "README.md": SMALL_DISCRIMINATOR,
    "audiovae_jax/torch_io/README.md": names.MICRO_DISCRIMINATOR,
}
# Pages whose blocks run in other tests: those of data sets, of the server, and of custom files.
_ELSEWHERE = {f"audiovae_jax/{name}/README.md" for name in ("inference", "evaluation/listening", "config")}


def _blocks(page):
    """Return a page's Python blocks, with small widths, since the published model takes minutes to initialise."""
    small = {"latent_dim=64, base_channels=128": "latent_dim=3, base_channels=2"}
    if page in _DISCRIMINATORS:
        small["EnCodecDiscriminator()"] = f"EnCodecDiscriminator(**{_DISCRIMINATORS[page]})"
    text = (ROOT / page).read_text()
    for wide, narrow in small.items():
        text = text.replace(wide, narrow)
    return re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)


def _run(page):
    """Run a page's blocks one after the other. Yield the namespace after each."""
    namespace = {}
    for block in _blocks(page):
        exec(block, namespace)
        yield namespace


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the blocks read."""
    monkeypatch.chdir(tmp_path)
    for name in ("old.ckpt", "epoch=99.ckpt"):
        shutil.copy(GOLDEN / "lightning.ckpt", name)
    Path("songs").mkdir()
    soundfile.write("songs/a.wav", 0.1 * np.random.default_rng(0).standard_normal((3000, 2)), 44100)
    model = AudioVAE(**SMALL_MODEL)
    save_model(model, random_variables(model), "runs/tiny", sample_rate=44100)


@pytest.mark.slow
def test_the_front_page(workplace):
    run = _run("README.md")
    namespace = next(run)
    assert namespace["decoded"].shape == namespace["audio"].shape == (3000, 2)
    assert namespace["output"].reconstruction.shape == (1, 3000, 2)
    np.testing.assert_array_equal(np.asarray(namespace["latents"]), namespace["latents"].z)
    assert Path("latents.safetensors").exists()
    next(run)
    assert namespace["model"].latent_dim == 3
    next(run)
    assert float(namespace["d"]["d_loss"]) > 0
    assert bool(namespace["g"]["is_active"])
    assert float(namespace["stft_loss"]) > 0
    assert list(run) == []


@pytest.mark.slow
def test_saving_and_loading(workplace):
    namespace = next(_run("audiovae_jax/persistence/README.md"))
    state = namespace["state"]
    assert (state["epoch"], state["global_step"]) == (50, 25000)
    assert state["metadata"] == {"val_loss": 0.123, "notes": "Best model so far"}
    assert jax.tree.structure(state["optimizer_state"]) == jax.tree.structure(namespace["opt_state"])
    assert isinstance(namespace["model"], AudioVAE)


@pytest.mark.slow
def test_models_on_the_hub(workplace, hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    *_, namespace = _run("audiovae_jax/persistence/README.md")
    assert list(hub.repositories) == ["me/my-vae"]
    assert isinstance(namespace["model"], AudioVAE)


def test_coming_from_pytorch(workplace):
    (_,) = _run("audiovae_jax/torch_io/README.md")
    assert Path("back.pt").exists()


def test_every_page_with_python_is_run():
    pages = [README, *PACKAGE.rglob("README.md")]
    with_python = {str(page.relative_to(ROOT)) for page in pages if _blocks(str(page.relative_to(ROOT)))}
    assert with_python == _ELSEWHERE | {"README.md"} | {
        f"audiovae_jax/{name}/README.md" for name in ("persistence", "torch_io")
    }


def test_links_lead_somewhere():
    pages = [README, *PACKAGE.rglob("README.md")]
    for page in pages:
        for link in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page}: {link}"


def test_the_public_names_are_there():
    for name in (
        "AudioVAE", "EnCodecDiscriminator", "AdversarialLossCalculator", "save_model", "load_model",
        "load_training_state", "load_from_lightning_checkpoint", "Codec", "Latents",
    ):  # fmt: skip
        assert getattr(audiovae_jax, name).__doc__
