"""The notebook runs from top to bottom, with two steps instead of 500, and narrow networks."""

import json
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from conftest import SMALL_DISCRIMINATOR, SMALL_MODEL

from configs import tiny

ROOT = Path(__file__).resolve().parents[1]


def _narrow(override, config):
    override(config)
    config.model.update(SMALL_MODEL)
    config.discriminator.update(SMALL_DISCRIMINATOR)
    config.losses.stft.fft_sizes = (256,)
    config.losses.mel.fft_sizes, config.losses.mel.n_mels = (1024,), (16,)


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom(tmp_path, monkeypatch):
    shown = []
    display = types.ModuleType("IPython.display")
    display.Audio = lambda audio, rate: (np.asarray(audio), rate)
    display.Image = lambda path: Path(path).read_bytes()
    display.display = shown.append
    ipython = types.ModuleType("IPython")
    ipython.version_info = (9, 0)  # requested by Matplotlib
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    monkeypatch.setitem(sys.modules, "IPython.display", display)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "my_discriminator", raising=False)
    monkeypatch.setattr(tiny, "override", lambda config, override=tiny.override: _narrow(override, config))
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((ROOT / "scripts" / "quickstart.ipynb").read_text())
    namespace = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]).replace("steps = 500", "steps = 2"), namespace)
    original, reconstruction, image, own = shown
    assert original[0].shape == reconstruction[0].shape == own[0].shape
    assert original[1] == own[1] == 44100
    assert np.isfinite(own[0]).all()
    assert np.abs(own[0] - reconstruction[0]).max() < 2e-4  # 16-bit files
    assert image.startswith(b"\x89PNG")
    assert int(namespace["state"].step) == 2
    assert namespace["state"].discriminator_params["Conv_0"]["kernel"].shape == (15, 2, 16)
