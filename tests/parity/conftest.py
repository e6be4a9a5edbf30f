"""Golden cases: the recipe that regenerates inputs, and stub encoders that return given features."""

import functools
import importlib.util
import json
import os
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._pytree import tree_map_only

import models
from util.episode import Output


@pytest.fixture(scope="session")
def recipe(parity: Path) -> ModuleType:
    """The module parity/recipe.py, which draws every input of the golden cases."""
    specification = importlib.util.spec_from_file_location("parity_recipe", parity / "recipe.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def golden(parity: Path):
    """`golden(topic)` -> (cases, arrays) of one topic."""

    def load(topic: str) -> tuple[object, dict[str, np.ndarray]]:
        with np.load(parity / topic / "fixtures.npz") as arrays:
            return json.loads((parity / topic / "cases.json").read_text("utf-8")), dict(arrays)

    return load


@pytest.fixture(autouse=True)
def on_a_device(monkeypatch):
    """With FSMIS_DEVICE=cuda every method matches there; what goes in and comes out lies on the CPU."""
    device = os.environ.get("FSMIS_DEVICE")
    if device is None:
        return
    inside = []

    def moved(self, match, *arguments, **options):  # a partialmethod puts its own arguments behind self
        if inside:  # a method that calls the one it extends
            return match(self, *arguments, **options)
        inside.append(True)
        try:
            to = functools.partial(tree_map_only, torch.Tensor, lambda tensor: tensor.to(device))
            output = match(self.to(device), *to(arguments), **to(options))
            back = functools.partial(tree_map_only, torch.Tensor, lambda tensor: tensor.cpu())
            return Output(output.logits.cpu(), back(output.losses), back(output.diagnostics))
        finally:
            inside.clear()

    for owner in {owner for name in models.names() for owner in models.method_class(name).__mro__}:
        if "match" in vars(owner):
            monkeypatch.setattr(owner, "match", functools.partialmethod(moved, owner.match))


class StubEncoder(nn.Module):
    """Stands for an encoder whose features are given to `match` directly."""

    dims = 2

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...]) -> None:
        super().__init__()
        self.channels, self.strides = channels, strides


def compare_gradient(gradient: torch.Tensor, norm_and_sum: np.ndarray) -> None:
    """The stored L2 norm to rtol 1e-4, the sum (which cancels) to 1e-3 of the norm."""
    flat = gradient.double().flatten()
    norm, total = norm_and_sum
    assert flat.norm().item() == pytest.approx(norm, rel=1e-4, abs=1e-12)
    assert flat.sum().item() == pytest.approx(total, abs=1e-3 * norm + 1e-12)


def compare_entries(gradient: torch.Tensor, stored: np.ndarray, part: float = 1e-4, name: str = "") -> None:
    """Evenly spread entries of a gradient, to rtol 1e-3 and `part` of the largest that is stored."""
    entries = gradient.flatten()[np.linspace(0, gradient.numel() - 1, len(stored)).astype(int)]
    np.testing.assert_allclose(entries, stored, rtol=1e-3, atol=part * np.abs(stored).max(), err_msg=name)


def of_case(arrays: dict[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    """The arrays `name/...` of one case."""
    return {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
