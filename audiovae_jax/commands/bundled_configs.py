"""The configs that come with the package: the clone's `configs/`, which a wheel holds as a part of the package."""

import importlib
import importlib.util
import sys
from pathlib import Path

import ml_collections

_PACKAGE = Path(__file__).resolve().parents[1]
FOLDER = next(
    folder for folder in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if (folder / "base.py").is_file()
)


def offer():
    """Make `from configs import base` work in configs anywhere, whatever folder the command is given in."""
    if "configs" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "configs", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["configs"] = module
    spec.loader.exec_module(module)


def reference() -> ml_collections.ConfigDict:
    """The base config, whose keys are the allowed ones."""
    return importlib.import_module("configs.base").get_config()


def locate(name: str) -> str:
    """The path that `tiny`, or a path, stands for."""
    if "/" in name or name.endswith(".py") or not (FOLDER / f"{name}.py").is_file():
        return name
    return str(FOLDER / f"{name}.py")
