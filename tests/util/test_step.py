"""The optimiser has the rates and momenta of the `train.*` keys; a compiled step computes what the plain one does."""

import shutil

import pytest
import torch
from torch import nn

import training
from tests.models.test_contract import build, episode
from tests.options import defaults
from util.errors import UserError
from util.runs.processes import Ranks
from util.runs.step import compiled, learning_rate, make_optimiser

OPTIONS = dict(optimiser="sgd", learning_rate=0.02, weight_decay=3e-4, momentum=0.8)
needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")


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


def losses(compile_it: bool) -> list[float]:
    method = build("panet").train()
    options = {"train": defaults("train", method="panet") | {"compile": compile_it, "learning_rate": 0.1}}
    trainer = training.Trainer(method, None, options, {}, None, torch.device("cpu"), Ranks())
    return [trainer.train_step(episode(method, seed=seed))["loss"].item() for seed in range(3)]


@needs_compiler
def test_losses_are_those_of_the_plain_step():
    plain = losses(False)
    assert losses(True) == pytest.approx(plain, rel=1e-4)
    assert plain[0] != plain[1]


def test_without_a_compiler_one_sentence(monkeypatch):
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    call = compiled(lambda x: x.sin().cos() + 1, torch.device("cpu"))
    with pytest.raises(UserError, match=r"train.compile=True: cannot compile here.*train.compile=False"):
        call(torch.ones(7))
