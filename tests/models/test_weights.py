"""Encoders start from what the papers start from; without a network, one sentence says what to do."""

import pytest
import torch

import models
from models.parts import encoders
from tests.commands import refused, train
from util.errors import UserError


def test_methods_start_from_what_their_papers_start_from():
    for name in set(models.names()) - {"registration", "odds"}:
        method = models.method_class(name)
        expected = "coco" if method.dims == 2 else "kinetics"
        assert encoders.entry(method.default_encoder).weights == expected, name


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """Nobody answers, and nothing was fetched before."""
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch/hub/checkpoints"


def test_without_a_network_the_readme_says_what_to_do(offline, tiny, tmp_path, capsys):
    """`bash script/train_abd_2D.sh adnet`, as the README has it, on the phantom."""
    for encoder, file in (
        ("resnet101", "deeplabv3_resnet101_coco-586e9e4e.pth"),
        ("resnet18", "resnet18-f37072fd.pth"),
    ):
        weights = encoders.entry(encoder).weights
        line = refused(
            capsys, train, f"data_root={tiny}", f"runs={tmp_path}/runs", f"encoder={encoder}", f"weights={weights}"
        )
        for word in (file, str(offline), "weights=FILE", "weights=none", "encoder=efficientnet_lite0", "refused"):
            assert word in line, word


def test_files_that_lie_in_the_place_named_are_taken(offline):
    offline.mkdir(parents=True)
    state = encoders.build("resnet18", (8,), None).state_dict()
    torch.save(state, offline / "resnet18-f37072fd.pth")
    found = encoders.build("resnet18", (8,), "imagenet").state_dict()
    assert all(torch.equal(found[name], value) for name, value in state.items())
    (offline / "resnet18-f37072fd.pth").write_bytes(b"half a file")
    with pytest.raises(UserError, match="not a plain file of tensors"):
        encoders.build("resnet18", (8,), "imagenet")


def test_kinetics_weights_are_fetched_by_hand(offline):
    with pytest.raises(UserError, match=r"resnext-101-kinetics.pth.*weights=FILE.*weights=none") as error:
        encoders.build("resnext101_3d", (8,), "kinetics", 3)
    assert str(offline) in str(error.value)
