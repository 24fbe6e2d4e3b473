"""Every command of every README runs unchanged, with small models and files."""

import importlib.util
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import command_line
import golden_foreign
import hub_server
import numpy as np
import old_configs
import pytest
import safetensors.numpy
import soundfile
from conftest import GOLDEN, SMALL_DISCRIMINATOR, SMALL_MODEL, random_variables

from audiovae_jax import AudioVAE, save_model
from audiovae_jax.commands import cli

ROOT = Path(__file__).resolve().parents[1]
_MODEL = (
    "--config.data.crop_length=2048 --config.batch_size=4 --config.model.base_channels=2 "
    "--config.model.channel_mults=(1,2) --config.model.strides=(2,4) --config.losses.stft.fft_sizes=(256,)"
)
_MEL = "--config.losses.mel.fft_sizes=(1024,) --config.losses.mel.n_mels=(16,)"
_TRAINING = "--config.num_steps=1 --config.sample_every=1 --config.data.num_samples=1 --config.diagnose_every=0"
# The first use of each command has the default ensemble. For the others, one sub-discriminator of two kinds compiles in
# a fifth of the time.
_ENSEMBLE = "--config.discriminator.use_msd=True " + " ".join(
    f"--config.discriminator.{name}={value}".replace(" ", "") for name, value in SMALL_DISCRIMINATOR.items()
)
_DISCRIMINATOR = (
    "--config.discriminator.stft_filters=1 --config.discriminator.n_ffts=(256,) --config.discriminator.use_msd=False "
    "--config.discriminator.mpd_periods=(2,) --config.discriminator.mpd_channels=(2,2)"
)
_NETWORKS = f"{_MODEL} {_MEL} {_DISCRIMINATOR}"
SMALL = {  # flags that shorten a command
    "train": f"{_NETWORKS} {_TRAINING}",
    "train --config=my_config.py": f"{_MODEL} {_MEL} {_TRAINING}",
    "train --config=configs/mine.py": f"{_MODEL} {_TRAINING} {_DISCRIMINATOR}",
    "doctor": _NETWORKS,
    "plan": f"{_NETWORKS} --target=cpu:2 --compiles=1",  # other targets need their compilers
    "probe_latents": "--steps=2 --seconds=0.1",
    "benchmark step": f"{_NETWORKS} --crop=2048 --repeats=1 --warmup=0",
    "benchmark codec": f"{_NETWORKS} --seconds=0.2 --repeats=1 --warmup=0",
    "benchmark data": f"{_NETWORKS} --repeats=1 --warmup=0",
    "benchmark compile": _NETWORKS,
    "benchmark memory": f"{_NETWORKS} --crop=2048 --repeats=1",
    "benchmark learning": f"{_NETWORKS} --crop=2048 --config.num_steps=1 --config.data.validation_crops=4",
}
GOING_ON = f"--config.num_steps=4 --config.batch_size=4 --config.data.crop_length=2048 {_TRAINING.split(' ', 1)[1]}"
ELSEWHERE = "--config.data.root=songs --config.data.source=folder --config.logging.writers=('tensorboard',)"


def _commands(page):
    """Return `(launcher, command, arguments)` of each line in a page's blocks that runs a command."""
    blocks = re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    found = [re.search(r"python (scripts/(train)\.py)(.*)|audiovae-jax (\w+)(.*)", line) for line in lines]
    return [
        ([sys.executable, str(ROOT / m[1])], m[2], shlex.split(m[3], comments=True))
        if m[1]
        else (command_line.line(m[4]), m[4], shlex.split(m[5], comments=True))
        for m in found
        if m
    ]


def _short(command, given, is_first):
    short = SMALL.get(f"{command} {given[0]}", SMALL.get(command, ""))
    if is_first:
        short = short.replace(_DISCRIMINATOR, _ENSEMBLE)
    if "--config.init_from=runs/tiny" in given:  # a saved model of this shape
        return [*short.split(), f"--config.model.latent_dim={SMALL_MODEL['latent_dim']}"]
    if "--config=configs/ace_step.py" in given:
        return [*GOING_ON.split(), *_DISCRIMINATOR.split()]
    if any("init_from" in part for part in given):
        short = GOING_ON  # with the file's settings instead of the config's
    if "--config=configs/mine.py" in given:
        short += f" {ELSEWHERE}"  # other than the old config's data and server
    return short.split()


def _write_noise(path, seconds=0.5, rate=44100):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.random.default_rng(0).standard_normal((int(seconds * rate), 2)), rate)


@pytest.fixture
def workplace(tmp_path, audio_folder, trained_run):
    """A folder with the files that the pages' commands name."""
    model = AudioVAE(**SMALL_MODEL)
    save_model(model, random_variables(model), tmp_path / "MODEL", sample_rate=44100)
    weights, _ = golden_foreign.load("diffusers")
    (tmp_path / "ace_step" / "vae").mkdir(parents=True)
    (tmp_path / "ace_step" / "vae" / "config.json").write_text(json.dumps(golden_foreign.config("diffusers")))
    safetensors.numpy.save_file(weights, tmp_path / "ace_step" / "vae" / "diffusion_pytorch_model.safetensors")
    for name in ("tiny", "other"):
        shutil.copytree(trained_run[0], tmp_path / "runs" / name)
    for name in ("songs", "path/to/audio"):
        shutil.copytree(audio_folder, tmp_path / name)
    for genre, number in itertools.product(("jazz", "rock"), range(10)):
        _write_noise(tmp_path / "data" / "gtzan" / "genres" / genre / f"{genre}.{number:05d}.wav")
    old_configs.write(tmp_path / "old" / "configs")
    for name in ("old.ckpt", "old/last.ckpt", "old/checkpoints/last.ckpt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(GOLDEN / "lightning.ckpt", tmp_path / name)
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "audiovae_jax/config/README.md").read_text(), re.DOTALL):
        (tmp_path / code.split("\n", 1)[0].removeprefix("# ")).write_text(code)
    (tmp_path / "configs").mkdir()
    for config in (ROOT / "configs").glob("*.py"):
        shutil.copy(config, tmp_path / "configs")
    return tmp_path


def _serves(line, folder, environment):
    """Check a command that runs until it is stopped, or reports what it needs."""
    process = subprocess.Popen(
        line, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        said = process.stdout.readline()
        if importlib.util.find_spec("gradio") is None:
            assert "pip install -e '.[ui]'" in said
            return
        assert "serves " in said
        process.terminate()
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()


PAGES = [
    str(page.relative_to(ROOT)) for page in (ROOT / "README.md", *sorted((ROOT / "audiovae_jax").rglob("README.md")))
]
PAGES = [page for page in PAGES if _commands(ROOT / page)]


def _kind(command, given):
    return f"{command} {given[0]}" if command == "benchmark" else command


_FIRST = {  # page and number of the first use of each command; in a run of tiny.py, the discriminator starts too late
    _kind(command, given): (page, number)
    for page in reversed(PAGES)
    for number, (_, command, given) in reversed([*enumerate(_commands(ROOT / page))])
    if command != "train" or "--config=configs/base.py" in given
}


def test_the_commands_of_all_pages_are_found():
    found = {command for page in PAGES for _, command, _ in _commands(ROOT / page)}
    assert found == set(cli.COMMANDS) - {"convert_musdb18"}  # which needs ffmpeg and a purchased data set


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_every_command_runs_unchanged(workplace, page, request, monkeypatch):
    has_hub = importlib.util.find_spec("huggingface_hub") is not None
    if has_hub:
        request.getfixturevalue("hub")
        monkeypatch.setenv("HF_TOKEN", hub_server.TOKEN)
    environment = command_line.environment()
    seen = [] if page == "README.md" else _commands(ROOT / "README.md")
    # With the default structure. Only `report` needs a whole run, which uses a micro model.
    if all(command != "report" for _, command, _ in _commands(ROOT / page)):
        shutil.rmtree(workplace / "runs" / "tiny")
        shutil.copytree(workplace / "MODEL", workplace / "runs" / "tiny")
    for number, (start, command, given) in enumerate(_commands(ROOT / page)):
        if (start, command, given) in seen:
            continue
        if any("mlflow" in part for part in given) and importlib.util.find_spec("mlflow") is None:
            continue
        if command == "push_to_hub" and not has_hub:
            continue
        given = [re.sub(r"^(.*?)/(path/to|data)/", rf"\1{workplace}/\2/", part) for part in given]
        if command == "benchmark":  # comparisons with torch run in the benchmark's own tests
            given = [part for part in given if not part.startswith("--against")]
        workdir = [f"--workdir=work/{number}"] if command == "train" else []
        is_first = _FIRST.get(_kind(command, given)) == (page, number)
        line = [*start, *given, *_short(command, given, is_first), *workdir]
        if command == "serve":
            _serves([*line, "--port=0"], workplace, environment)
            continue
        done = subprocess.run(line, capture_output=True, text=True, cwd=workplace, env=environment, check=False)
        assert done.returncode == 0, f"{shlex.join(line)}\n{done.stdout}{done.stderr}"
        for written in (part.partition("=")[2] for part in given if re.match("--(out|json|page|picture)=", part)):
            assert (workplace / written).exists(), f"{shlex.join(line)} wrote no {written}"
