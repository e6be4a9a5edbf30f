"""The optimiser has the rates and momenta of the `train.*` keys."""

import pytest
from torch import nn

from util.runs.optimisation import learning_rate, make_optimiser

OPTIONS = dict(optimiser="sgd", learning_rate=0.02, weight_decay=3e-4, momentum=0.8)


@pytest.mark.parametrize(("kind", "momentum"), [("sgd", {"momentum": 0.8}), ("adam", {"betas": (0.8, 0.999)})])
def test_every_key_reaches_the_optimiser(kind, momentum):
    (group,) = make_optimiser(nn.Linear(2, 2), OPTIONS | {"optimiser": kind}).param_groups
    for name, value in {"lr": 0.02, "weight_decay": 3e-4, **momentum}.items():
        assert group[name] == value, name


def test_the_last_stretch_keeps_its_rate():
    """A decay after every stretch but the last, whose end is the end of the training [training 2]."""
    options = dict(learning_rate=1.0, decay=0.5, decay_every=10, steps=30)
    assert [learning_rate(step, options) for step in (0, 9, 10, 20, 29, 30)] == [1, 1, 0.5, 0.25, 0.25, 0.25]
    assert learning_rate(3, options | {"steps": 5}) == 1
