"""A compiled training step computes what the plain one does."""

import shutil

import pytest
import torch

import training
from tests.models.test_contract import build, episode
from tests.options import defaults
from util.errors import UserError
from util.runs.compilation import compiled
from util.runs.processes import Ranks

needs_compiler = pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler here")


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
