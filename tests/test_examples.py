"""Examples in docstrings do what they show."""

import doctest
import importlib

import pytest

from tests.conftest import ROOT

PACKAGES = ("data", "dataloaders", "models", "supervoxels", "util")
FILES = [file for name in PACKAGES for file in (ROOT / name).rglob("*.py") if ">>> " in file.read_text("utf-8")]
MODULES = sorted(".".join(file.relative_to(ROOT).with_suffix("").parts) for file in FILES)


@pytest.mark.parametrize("name", MODULES)
def test_examples_give_what_they_show(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_what_a_newcomer_meets_first_has_examples():
    modules = map(importlib.import_module, MODULES)
    found = {
        test.name.split(".")[-1] for module in modules for test in doctest.DocTestFinder().find(module) if test.examples
    }
    assert {"Episode", "Dataset", "make_tasks", "volume_scores"} <= found
    assert len(found) >= 5
