"""The structure that the code keeps: imports only go down, and nothing stray lies at the top."""

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "audiovae_jax"
# From low to high. A module may import from the packages before its own, and from its own.
LEVELS = [
    "errors",
    "checks",
    "ops",
    "models",
    "discriminators",
    "losses",
    "storage",
    "training",
    "data",
    "datasets",
    "feeding",
    "pages",
    "survey",
    "torch_files",
    "torch_io",
    "config",
    "migration",
    "persistence",
    "inference",
    "tracking",
    "evaluation",
    "distributed",
    "run",
    "serving",
    "benchmark",
    "planning",
    "commands",
    "__main__",
]
MOST_FILES = 14  # of a package; one that passes it has become two


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "audiovae_jax":
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("audiovae_jax."):
                    yield alias.name.split(".")[1]


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if module == "__init__":
        return
    assert module in LEVELS, f"give {module} its level"
    for imported in _imports(path):
        assert imported in LEVELS, f"{path} imports {imported}, which has no level"
        assert imported == module or LEVELS.index(imported) < LEVELS.index(module), f"{module} imports {imported}"


def test_packages_say_what_lives_there_and_stay_small():
    for package in (folder for folder in PACKAGE.iterdir() if (folder / "__init__.py").exists()):
        assert package.name in LEVELS
        sentence = ast.get_docstring(ast.parse((package / "__init__.py").read_text())).split("\n")[0]
        assert sentence.endswith("."), package
        assert len(list(package.glob("*.py"))) <= MOST_FILES, f"{package} has become two"


def test_a_wheel_holds_every_package_and_the_configs():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {f"audiovae_jax.{path.parent.name}" for path in PACKAGE.glob("*/__init__.py")}
    assert set(listed) == {"audiovae_jax", "audiovae_jax.configs", *packages}


def test_the_package_does_not_import_torch_or_the_configs():
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            assert not {name.split(".")[0] for name in names} & {"torch", "configs", "scripts", "tests"}, path


def test_the_top_level_is_what_was_agreed():
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout, so there is no list of files that belong to the project")
    top = {line.split("/")[0] for line in listed.stdout.splitlines()}
    agreed = {"audiovae_jax", "configs", "scripts", "tests", "pyproject.toml", "README.md", "LICENSE"}
    assert {name for name in top if not name.startswith(".")} == agreed
