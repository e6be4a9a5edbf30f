"""Who may import whom (the house plan): read from the source, so no import order can hide a breach."""

import ast

import pytest

from tests.conftest import ROOT

PACKAGES = ("util", "models", "dataloaders", "supervoxels", "data")
EDGE = ("config", "training", "test", "predict")
ALLOWED = {
    "util": {"util"},
    "models": {"models", "util"},
    "dataloaders": {"dataloaders", "util"},
    "supervoxels": {"supervoxels", "util"},
    "data": {"data", "util", "supervoxels", "dataloaders"},
}


def imported(file) -> set[str]:
    """Top-level names of the imports at module level (a lazy import in a function is a command's business)."""
    tree = ast.parse(file.read_text())
    names = set()
    for node in tree.body:
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_only_what_lies_below(package):
    own = set(PACKAGES) | set(EDGE)
    for file in (ROOT / package).rglob("*.py"):
        assert imported(file) & own <= ALLOWED[package], file


def test_only_the_edge_knows_sacred():
    for package in PACKAGES:
        for file in (ROOT / package).rglob("*.py"):
            assert "sacred" not in imported(file), file


def test_config_asks_methods_only_for_defaults():
    assert imported(ROOT / "config.py") & {"dataloaders", "supervoxels", "data", "training", "test"} == set()


def test_nothing_unpickles():
    """torch.load only with weights_only=True; pickle nowhere."""
    for file in [*ROOT.glob("*.py"), *(f for package in PACKAGES for f in (ROOT / package).rglob("*.py"))]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(k.arg == "weights_only" and ast.unparse(k.value) == "True" for k in node.keywords), file
        assert not imported(file) & {"pickle", "dill"}, file
