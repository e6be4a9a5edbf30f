"""What a GPU asks of a method, proven without one: no tensor left on the host, no step that waits for a value."""

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import models
import training
from models.parts import encoders
from tests.models.test_contract import build, episode
from tests.options import defaults
from util.episode import Episode
from util.runs.processes import Ranks

REAL = {2: ("efficientnet_lite0", "resnet18"), 3: ("efficientnet_lite0", "resnext14_3d")}


@pytest.fixture(params=models.names())
def name(request) -> str:
    return request.param


def on_meta(method, given: Episode) -> None:
    """Forward, backward and evaluation where tensors have shapes and no values: a tensor of the host fails there."""
    method, given = method.to("meta"), given.to("meta")
    output = method.train()(given)
    output.loss.backward()
    assert all(p.grad is None or p.grad.device.type == "meta" for p in method.parameters())
    with torch.no_grad():
        supports, queries = method.eval()._encode_both(given)
        found = method.match(supports, given.support_masks, queries)
    for value in (output.logits, output.loss, found.logits, *output.losses.values(), *output.diagnostics.values()):
        assert value.device.type == "meta"


def test_nothing_stays_on_the_host(name):
    method = build(name)
    on_meta(method, episode(method, episodes=2, shots=2, queries=2))


@pytest.mark.parametrize(("dims", "encoder"), [(dims, name) for dims, names in REAL.items() for name in names])
def test_encoders_leave_nothing_on_the_host(dims, encoder):
    owner = models.method_class("adnet" if dims == 2 else "adnet3d")
    strides = (16,) if encoder == "efficientnet_lite0" else (8,)
    method = owner(encoders.build(encoder, strides, None, dims))
    on_meta(method, episode(method))


class NoWaiting(TorchDispatchMode):
    """Refuses what makes a GPU's program wait for a value."""

    REFUSED = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "equal", "is_nonzero")

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.name().removeprefix("aten::").split(".")[0].lstrip("_")
        waits = name in [word.lstrip("_") for word in self.REFUSED]
        if name in ("index", "index_put", "index_put_"):  # a mask as index: how many elements it names is a value
            waits = any(index is not None and index.dtype == torch.bool for index in arguments[1])
        assert not waits, f"{function.name()} waits for the device"
        return function(*arguments, **(options or {}))


def test_waiting_is_noticed():
    for wait in (Tensor.item, Tensor.nonzero, bool):
        with pytest.raises(AssertionError, match="waits"), NoWaiting():
            wait(torch.ones(1))
    with pytest.raises(AssertionError, match="waits"), NoWaiting():
        torch.ones(2)[torch.ones(2) > 0]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_training_step_waits_for_nothing(name, precision):
    """The whole update, and an evaluation."""
    method = build(name).train()
    options = {"train": defaults("train", method=name) | {"precision": precision}}
    trainer = training.Trainer(method, None, options, {}, None, torch.device("cpu"), Ranks())
    given = episode(method, episodes=2)
    before = [parameter.clone() for parameter in method.parameters()]
    with NoWaiting():
        values = [trainer.train_step(given) for _ in range(2)]
        with torch.no_grad():
            method.eval()(given)
    assert all(value.isfinite() for step in values for value in step.values())
    assert any(not torch.equal(*pair) for pair in zip(before, method.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_a_training_step_waits_for_nothing(name):
    """What CUDA itself says of a whole step."""
    method = build(name).to("cuda").train()
    options = {"train": defaults("train", method=name)}
    trainer = training.Trainer(method, None, options, {}, None, torch.device("cuda"), Ranks())
    given = episode(method, episodes=2).to("cuda")
    trainer.train_step(given)
    torch.cuda.set_sync_debug_mode("error")
    try:
        trainer.train_step(given)
    finally:
        torch.cuda.set_sync_debug_mode("default")
