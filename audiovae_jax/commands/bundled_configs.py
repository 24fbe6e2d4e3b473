"""The bundled configs: `configs/` in a clone, part of the package in a wheel."""

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
    """Make `from configs import base` work in every working directory."""
    if "configs" in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(
        "configs", FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules["configs"] = module
    spec.loader.exec_module(module)


def reference() -> ml_collections.ConfigDict:
    """Return the base config, which has every allowed key."""
    return importlib.import_module("configs.base").get_config()


def locate(name: str) -> str:
    """Return the path of a bundled config such as `tiny`.

    A path is returned unchanged.
    """
    if "/" in name or name.endswith(".py") or not (FOLDER / f"{name}.py").is_file():
        return name
    return str(FOLDER / f"{name}.py")
