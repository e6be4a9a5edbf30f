"""Who may import whom (the house plan): read from the source, lazy imports too, so no import order hides a breach."""

import ast
from pathlib import Path

import pytest

from tests.conftest import ROOT

# what you type lies on top; each package may import itself and what stands here
BELOW = {
    "util": set(),
    "models": {"util"},
    "dataloaders": {"util"},
    "supervoxels": {"util"},
    "data": {"util", "supervoxels", "dataloaders"},
    "script": {"util", "models", "config"},
}
# commands that look up a data set by its name: what a user types may import what a user edits
COMMANDS = {"data/check.py": {"config"}, "supervoxels/generate.py": {"config"}}
PROGRAMS = {"config", "training", "test", "predict"}
SACRED = "util/runs/experiment.py"
FILES = {package: sorted((ROOT / package).rglob("*.py")) for package in BELOW}


def imported(file: Path) -> set[str]:
    """Top-level names of all imports of a file, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", BELOW)
def test_packages_import_only_what_lies_below(package):
    assert FILES[package]
    for file in FILES[package]:
        allowed = {package} | BELOW[package] | COMMANDS.get(str(file.relative_to(ROOT)), set())
        assert imported(file) & (BELOW.keys() | PROGRAMS) <= allowed, file


@pytest.mark.parametrize("package", [package for package in BELOW if package != "script"])
def test_rooms_do_not_import_the_commands_above_them(package):
    """`data/parts/convert.py` may be imported by `data/sabs.py`, never the other way round."""
    for file in FILES[package]:
        folder = file.parent
        if folder == ROOT / package or folder.name in ("report", "evaluation", "runs"):
            continue
        commands = {
            f"{package}.{path.stem}"
            for path in (ROOT / package).glob("*.py")
            if '__name__ == "__main__"' in path.read_text("utf-8")
        }
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.ImportFrom):
                found = {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
                assert not found & commands, f"{file} imports {found & commands}"


def test_only_one_file_knows_sacred():
    for file in [*ROOT.glob("*.py"), *(file for files in FILES.values() for file in files)]:
        if str(file.relative_to(ROOT)) != SACRED:
            assert "sacred" not in imported(file), file


def test_config_asks_methods_only_for_defaults():
    assert imported(ROOT / "config.py") & (BELOW.keys() | PROGRAMS) == {"models", "util"}


def test_nothing_unpickles():
    """torch.load only with weights_only=True; pickle nowhere."""
    for file in [*ROOT.glob("*.py"), *(file for files in FILES.values() for file in files)]:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), file
        assert not imported(file) & {"pickle", "dill"}, file
