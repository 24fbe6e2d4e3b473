"""The guide's tables: every place that they name is there."""

import importlib
import re
from pathlib import Path

import pytest

from audiovae_jax.commands import cli
from audiovae_jax.config import configuration
from configs import base

ROOT = Path(__file__).resolve().parents[3]
GUIDE = ROOT / "audiovae_jax" / "migration" / "README.md"
# The chapters and sections of the document that the PyTorch system came with.
CHAPTERS = (
    "Overview of Improvements", "Discriminator Configuration", "Disable Specific Discriminators", "Change FFT Sizes",
    "Adjust Channel Capacity", "Using a Different Discriminator", "Adversarial Loss Calculator",
    "Gradual Adversarial Training", "Strong Adversarial Training", "Focus on Perceptual Quality",
    "Model Save/Load Utilities", "load_training_state()", "What Gets Saved?", "Converting Lightning Checkpoints",
    "Migration Guide", "Legacy Parameter Support", "Saving Models from Lightning", "Testing the Changes",
    "Example 1: Training with Custom Discriminator", "Example 2: Staged Adversarial Training",
    "Example 3: Extract Model for Inference", "Troubleshooting",
)  # fmt: skip


def _rows(heading):
    (section,) = re.findall(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", GUIDE.read_text(), re.MULTILINE | re.DOTALL)
    rows = [line.strip("|").split("|", 1) for line in section.splitlines() if line.startswith("| ")]
    return [(old.strip(), new.strip()) for old, new in rows[1:]]


def _anchors(path):
    text = re.sub(r"```.*?```", "", path.read_text(), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def _places(text):
    """The links, keys, symbols and scripts that a cell names."""
    yield from (("link", target) for target in re.findall(r"\]\(([^)]+)\)", text))
    yield from (("key", key) for key in re.findall(r"`config\.([\w.]+?)`", text))
    yield from (("symbol", name) for name in re.findall(r"`(audiovae_jax\.[\w.]+)`", text))
    yield from (("script", name) for name in re.findall(r"scripts/(\w+)\.py", text))


def _require(kind, place):
    if kind == "link":
        name, _, anchor = place.partition("#")
        path = (GUIDE.parent / name).resolve() if name else GUIDE
        assert path.is_file(), place
        assert not anchor or anchor in _anchors(path), f"{place}: its headings are {sorted(_anchors(path))}"
    elif kind == "key":
        assert configuration.has_key(base.get_config(), place), place
    elif kind == "symbol":
        owner, _, name = place.rpartition(".")
        try:
            assert hasattr(importlib.import_module(owner), name) or importlib.import_module(place), place
        except ModuleNotFoundError:
            pytest.fail(f"there is no {place}")
    else:
        assert (ROOT / "scripts" / f"{place}.py").is_file(), place
        assert place in cli._MODULES, place


def test_every_chapter_of_the_old_document_has_its_place():
    rows = dict(_rows("Chapters of the old document"))
    assert tuple(rows) == CHAPTERS
    for chapter, text in rows.items():
        assert list(_places(text)), chapter


@pytest.mark.parametrize(
    "heading",
    ["Chapters of the old document", "Keys", "Callbacks", "Classes and functions", "Commands", "Checkpoint fields",
     "Behaviour", "Errors"],
)  # fmt: skip
def test_every_place_is_there(heading):
    rows = _rows(heading)
    assert len(rows) > 4
    for _, new in rows:
        for kind, place in _places(new):
            _require(kind, place)


def test_the_old_document_has_no_other_chapters():
    document = ROOT.parent / "shared" / "OLD_GUIDE.md"
    if not document.exists():
        pytest.skip("the PyTorch system's document is not at hand")
    chapters = re.findall(r"^## (.*)$", re.sub(r"```.*?```", "", document.read_text(), flags=re.DOTALL), re.MULTILINE)
    answered = [*CHAPTERS, "Table of Contents", "Examples", "Summary"]  # the examples one by one
    assert set(chapters) <= set(answered)


@pytest.mark.parametrize("place", [("link", "../nowhere.md"), ("link", "../../README.md#nothing"), ("key", "model.no"),
                                   ("symbol", "audiovae_jax.nothing"), ("script", "nothing")])  # fmt: skip
def test_a_place_that_is_not_there_fails(place):
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        _require(*place)
