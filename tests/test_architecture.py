"""The structure that the code keeps: imports only go down, and nothing stray lies at the top."""

import ast
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "audiovae_jax"
# From low to high. A module may import from the rooms before its own, and from its own.
WINGS = {
    "foundation": ["errors", "html", "storage", "distributed"],
    "core": ["ops", "models", "discriminators", "losses", "training", "config"],
    "data": ["data/formats", "data/audio", "data/sets", "data/feeding", "data/survey"],
    "disk": ["torch_io/files", "torch_io", "torch_io/migration", "persistence"],
    "use": ["inference", "evaluation", "evaluation/listening"],
    "run": ["run/tracking", "run"],
    "cost": ["performance/benchmark", "performance/planning"],
    "door": ["commands", "__main__"],
}
ROOMS = [room for rooms in WINGS.values() for room in rooms]
MAX_FILES = 14  # of a package; one that passes it has become two
MAX_ENTRIES = 20  # of the top package


def _room(parts):
    """The room of a module's path below the package: `data/sets`, `ops`."""
    nested = "/".join(parts[:2])
    return nested if nested in ROOMS else parts[0]


def _imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "audiovae_jax":
            for alias in node.names:
                yield _room([*node.module.split(".")[1:], alias.name])
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("audiovae_jax."):
                    yield _room(alias.name.split(".")[1:])


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_only_go_down(path):
    relative = path.relative_to(PACKAGE).with_suffix("").parts
    if relative[-1] == "__init__" and "/".join(relative[:-1]) not in ROOMS:
        return
    room = _room(relative)
    assert room in ROOMS, f"give {room} its place"
    for imported in _imports(path):
        assert imported in ROOMS, f"{path} imports {imported}, which has no place"
        assert ROOMS.index(imported) <= ROOMS.index(room), f"{room} imports {imported}"


def test_packages_say_what_lives_there_and_stay_small():
    folders = [path.parent for path in PACKAGE.rglob("__init__.py") if path.parent != PACKAGE]
    assert {room for room in ROOMS if (PACKAGE / room).is_dir()} <= {str(f.relative_to(PACKAGE)) for f in folders}
    for folder in folders:
        sentence = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())).split("\n")[0]
        assert sentence.endswith("."), folder
        assert len(list(folder.glob("*.py"))) <= MAX_FILES, f"{folder} has become two"
    assert len([entry for entry in PACKAGE.iterdir() if entry.name != "__pycache__"]) <= MAX_ENTRIES


def test_a_wheel_holds_every_package_and_the_configs():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    packages = {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(listed) == {"audiovae_jax.configs", *packages}


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
