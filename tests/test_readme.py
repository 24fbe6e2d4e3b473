"""The README's Python is what works here: its examples of saving, loading and using a model, run in order."""

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import golden_configs as names
import jax
import numpy as np
import optax
import pytest
from conftest import GOLDEN, initialised, random_variables

import audiovae_jax
from audiovae_jax import AudioVAE, EnCodecDiscriminator, load_model, save_model

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
    model, variables = load_model("old.ckpt")
    save_model(model, variables, "runs/tiny", sample_rate=44100)
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
    params = initialised(namespace["discriminator"], namespace["real_audio"])
    namespace["discriminator"] = functools.partial(namespace["discriminator"].apply, params)
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


SMALL = {  # what makes a command of the README short
    "train.py": "--config.num_steps=1 --config.batch_size=4 --config.data.crop_length=2048 --config.sample_every=1 "
    "--config.model.base_channels=2 --config.discriminator.stft_filters=1 --config.discriminator.n_ffts=(256,) "
    "--config.discriminator.use_msd=False --config.discriminator.mpd_periods=(2,) "
    "--config.discriminator.mpd_channels=(2,4) --config.losses.stft.fft_sizes=(256,) "
    "--config.losses.mel.fft_sizes=(1024,) --config.losses.mel.n_mels=(16,) --config.data.num_samples=1",
    "doctor.py": "--config.data.crop_length=2048 --config.model.base_channels=2 --config.use_adversarial=False "
    "--config.batch_size=4 --config.losses.stft.fft_sizes=(256,) --config.losses.mel.fft_sizes=(1024,) "
    "--config.losses.mel.n_mels=(16,)",
    "benchmark.py": "--repeats=1 --warmup=0 --crop=2048 --config.batch_size=4 --config.model.base_channels=2 "
    "--config.use_adversarial=False --config.losses.stft.fft_sizes=(256,) --config.losses.mel.fft_sizes=(1024,) "
    "--config.losses.mel.n_mels=(16,)",
}


def _commands():
    """The lines of the README that run a script, with those that they go on in."""
    text = "".join(re.findall(r"```bash\n(.*?)```", README.read_text(), flags=re.DOTALL)).replace("\\\n", " ")
    return [line for line in text.splitlines() if "scripts/" in line]


@pytest.mark.slow
def test_every_command_works_as_it_stands(tmp_path, audio_folder):
    """With a small model and folder in place of a user's own, and what makes training short."""
    model = AudioVAE(base_channels=2, channel_mults=(1, 2), strides=(2, 4), latent_dim=3, dilations=(1,))
    save_model(model, random_variables(model), tmp_path / "MODEL", sample_rate=44100)
    shutil.copytree(tmp_path / "MODEL", tmp_path / "runs" / "tiny")
    shutil.copytree(audio_folder, tmp_path / "songs")
    shutil.copy(GOLDEN / "lightning.ckpt", tmp_path / "old.ckpt")
    commands = _commands()
    assert len(commands) == 19
    for number, command in enumerate(commands):
        _, _, arguments = command.partition(".venv/bin/python scripts/")
        script, *given = shlex.split(arguments, comments=True)
        given = [part.replace("/path/to/audio", str(tmp_path / "songs")) for part in given]
        if script == "benchmark.py":
            given = [part for part in given if not part.startswith("--against")]
        if "--config.init_from=old.ckpt" in given:  # whose settings replace the config's
            short = ["--config.num_steps=4", *SMALL[script].split()[1:4], *SMALL[script].split()[8:]]
        else:
            short = SMALL.get(script, "").split()
        workdir = [f"--workdir={tmp_path / str(number)}"] if script == "train.py" else []
        given = [part.replace("configs/", f"{ROOT}/configs/") for part in given]
        line = [sys.executable, str(ROOT / "scripts" / script), *given, *short, *workdir]
        if script == "serve.py":
            _serves([*line, "--port=0"], tmp_path)
            continue
        done = subprocess.run(line, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"


def _serves(line, folder):
    """A command that goes on until it is stopped, or says what it needs."""
    process = subprocess.Popen(line, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said = process.stdout.readline()
        if importlib.util.find_spec("gradio") is None:
            assert "pip install -e '.[ui]'" in said
            return
        assert "has the page" in said
        process.terminate()
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()


@pytest.mark.slow
def test_the_commands_on_judging_work_as_they_stand(tmp_path, audio_folder):
    model = AudioVAE(base_channels=2, channel_mults=(1, 2), strides=(2, 4), latent_dim=3, dilations=(1,))
    for name in ("MODEL", "runs/tiny"):
        save_model(model, random_variables(model), tmp_path / name, sample_rate=44100)
    shutil.copytree(audio_folder, tmp_path / "songs")
    page = (PACKAGE / "evaluation" / "README.md").read_text()
    commands = "".join(re.findall(r"```sh\n(.*?)```", page, flags=re.DOTALL)).splitlines()
    assert len(commands) == 3
    for command in commands:
        given = shlex.split(command.removeprefix("python -m audiovae_jax "))
        line = [sys.executable, "-m", "audiovae_jax", *given]
        done = subprocess.run(
            line, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        (out,) = [part.removeprefix("--out=") for part in given if part.startswith("--out=")]
        assert (tmp_path / out / "report.html").stat().st_size > 10_000


def test_the_public_names_are_there():
    for name in (
        "AudioVAE", "EnCodecDiscriminator", "AdversarialLossCalculator", "save_model", "load_model",
        "load_training_state", "load_from_lightning_checkpoint", "Codec", "Latents",
    ):  # fmt: skip
        assert getattr(audiovae_jax, name).__doc__
