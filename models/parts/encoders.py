"""Encoders by name, and their pretrained weights.

An encoder has `dims`, `channels` and `strides` (in the plane, one entry per map, shallow to deep) and takes images
`(N, 1, *)` to a tuple of maps; the depth of a volume stays. One whose cells look at the middle of their pixels, not at
the first, says so: `centred = True`. Weights are loaded strictly: a file that does not fit is an error, never skipped.
"""

import contextlib
import functools
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from models.parts.efficientnet_lite import EfficientNetLite0, imagenet_file
from models.parts.resnet import ResNetEncoder
from models.parts.resnext3d import ResNeXt3D
from models.parts.slicewise import SliceWise
from models.parts.torchvision_shim import torchvision
from util.errors import UserError

log = logging.getLogger(__name__)


class Images(nn.Module):
    """No encoder: the images themselves, for methods that compare pixels."""

    name, dims, channels, strides = "none", 2, (1,), (1,)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        """Images `(N, 1, H, W)`, as they are."""
        return (images,)


class Entry(NamedTuple):
    """What the program knows about an encoder."""

    make: Callable[[tuple[int, ...]], nn.Module]  # from the output strides that are wanted; it may reach others
    weights: str = "none"  # when the user names none: what the papers start from
    strides: Mapping[int, int] = {}  # number of maps -> output stride of the deepest; else as the method's paper has it
    training: Mapping[str, Any] = {}  # values of `train.*` it wants if the method's recipe names none


ENCODERS = {
    "none": Entry(lambda strides: Images()),
    **{name: Entry(functools.partial(ResNetEncoder, name), "coco") for name in ("resnet101", "resnet50")},
    "resnet18": Entry(functools.partial(ResNetEncoder, "resnet18"), "imagenet"),
    # the one for volumes; in a 3D method the others see them slice by slice
    "resnext101_3d": Entry(ResNeXt3D, "kinetics"),
    # The same family, small enough to train on a CPU from a random start; no other learning rate was tried.
    "resnext14_3d": Entry(
        functools.partial(ResNeXt3D, counts=(1, 1, 1, 1), widths=(32, 64, 128, 256), name="resnext14_3d"),
        training={"learning_rate": 1e-2, "decay": 0.8, "decay_every": 0},
    ),
    # Mean Dice of ADNet on CHAOST2, fold 0, 2000 steps: 0.624 with the papers' values; batch norms trained on large
    # batches suffer from two images: 0.659 without; a larger step: 0.691, and as it then ends noisily (0.628 with other
    # episodes), a rate that decays. Stride 8 costs twice the time of 16 and was no better. With two maps a step at its
    # own strides of 16 and 32 takes less than half the time of 8 and 16.
    "efficientnet_lite0": Entry(
        EfficientNetLite0,
        "imagenet",
        {1: 16, 2: 32, 3: 16},
        {"frozen_norm": True, "learning_rate": 3e-3, "decay": 0.8, "decay_every": 0},
    ),
}
# torchvision's own enums know where each file lies, its hash and its cache
PUBLISHED = {
    ("resnet101", "imagenet"): "ResNet101_Weights.IMAGENET1K_V1",
    ("resnet50", "imagenet"): "ResNet50_Weights.IMAGENET1K_V1",
    ("resnet18", "imagenet"): "ResNet18_Weights.IMAGENET1K_V1",
    ("resnet101", "coco"): "DeepLabV3_ResNet101_Weights.COCO_WITH_VOC_LABELS_V1",
    ("resnet50", "coco"): "DeepLabV3_ResNet50_Weights.COCO_WITH_VOC_LABELS_V1",
}
KINETICS = "resnext-101-kinetics.pth"  # of Hara et al.; at a place that no program can fetch it from
FETCH_TIMEOUT = 30  # seconds without an answer
# parts of the published files that are no encoder: classifiers and unused heads
HEADS = ("fc.", "classifier.", "aux_classifier.", "_fc.", "_conv_head.", "_bn1.")


def entry(name: str) -> Entry:
    """What is known about an encoder; raises a UserError for an unknown name."""
    if name not in ENCODERS:
        raise UserError(f"encoder={name}: unknown; choose one of {', '.join(ENCODERS)}")
    return ENCODERS[name]


def build(name: str, strides: tuple[int, ...], weights: str | None = "none", dims: int = 2) -> nn.Module:
    """Make the encoder `name` with maps of the given output strides, for images or volumes.

    Args:
        name, strides: a key of ENCODERS; output strides of the maps, shallow to deep.
        weights: "none", "imagenet", "coco" (DeepLabV3's trunk), "kinetics" (volumes), a file with a state dict; None:
            from a checkpoint.
        dims: spatial axes of what it will see; a 2D encoder sees the slices of volumes.

    Raises:
        UserError: unknown name, no such strides or weights, a file that does not fit, an encoder of volumes for images.
    """
    encoder = entry(name).make(strides)
    if encoder.strides != strides:
        raise UserError(
            f"encoder={name}: has no maps of stride {strides}, the nearest are {encoder.strides}; choose another "
            "encoder or stride"
        )
    if encoder.dims > dims:
        raise UserError(f"encoder={name}: sees volumes, this method sees slices; choose another, such as resnet101")
    if weights == "none" and name != "none":
        log.warning("encoder %s starts at random; weights=imagenet, coco or a file give it a head start", name)
    elif weights not in (None, "none"):
        load_weights(encoder, published_state(name, weights), weights)
    return SliceWise(encoder) if dims > encoder.dims else encoder


def published_state(name: str, weights: str) -> Mapping[str, Tensor]:
    """The state dict behind a word or a file name."""
    if name == "efficientnet_lite0" and weights == "imagenet":
        return _read(imagenet_file())
    if (name, weights) in PUBLISHED:
        return _read(_fetched(torchvision().models.get_weight(PUBLISHED[name, weights]), name, weights))
    if weights == "kinetics" and name == "resnext101_3d":
        file = _fetched_files() / KINETICS
        if not file.is_file():
            raise UserError(
                f"weights=kinetics: {KINETICS} (of the first release of 3D-ResNets-PyTorch by Hara et al.) must be "
                f"fetched by hand; put it into {file.parent} or give its name as weights=FILE, or choose weights=none, "
                "or encoder=efficientnet_lite0, whose weights are installed"
            )
        return _read(file)
    if weights in ("imagenet", "coco", "kinetics"):
        raise UserError(f"there are no {weights} weights for {name}; choose none, or a file")
    return _read(Path(weights))


def _fetched_files() -> Path:
    """Where torchvision keeps the files it fetched; `TORCH_HOME` moves it."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def _fetched(published: Any, name: str, weights: str) -> Path:
    """The file of torchvision's published weights, fetched now unless it is there."""
    file = _fetched_files() / Path(published.url).name
    if file.is_file():
        return file
    try:
        with _answers_within(FETCH_TIMEOUT):
            published.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, HTTPException) as error:  # no network; a broken file; a connection that was lost
        raise UserError(
            f"weights={weights} for {name}: {published.url} cannot be fetched ({error}); put that file into "
            f"{file.parent} or give its name as weights=FILE, or choose weights=none, or encoder=efficientnet_lite0, "
            "whose weights are installed"
        ) from error
    return file


@contextlib.contextmanager
def _answers_within(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def load_weights(encoder: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy a published state dict into the encoder, strictly; classifiers are left aside, and the log says so.

    Prefixes `module.`, `encoder.`, `backbone.` are understood whether the file or the encoder carries them. Files older
    than the batch counters of batch norms (the Kinetics ones) leave these at zero.
    """
    present = encoder.state_dict()
    own = {_bare(name): name for name in present}
    unused = (*HEADS, *getattr(encoder, "unused", ()))
    given = {_bare(name): value for name, value in state.items() if not _bare(name).startswith(unused)}
    if not any(name.endswith("num_batches_tracked") for name in given):
        given |= {bare: present[name] for bare, name in own.items() if bare.endswith("num_batches_tracked")}
    missing, foreign = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    sizes = [name for name in own.keys() & given.keys() if given[name].shape != present[own[name]].shape]
    if missing or foreign or sizes:
        raise UserError(
            f"weights={source} do not fit {encoder.name}: {len(missing)} tensors missing {missing[:2]}, "
            f"{len(foreign)} foreign {foreign[:2]}, {len(sizes)} of another shape {sizes[:2]}; "
            "choose the file of this encoder"
        )
    encoder.load_state_dict({own[name]: value for name, value in given.items()}, strict=True)
    aside = sorted({_bare(name) for name in state} - given.keys())
    matched = f"all {len(own)} tensors matched, {len(aside)} of the file left aside {aside[:4]}"
    log.info("encoder %s: %s weights, %s", encoder.name, source, matched)


def _bare(name: str) -> str:
    for prefix in ("module.", "encoder.", "backbone."):
        name = name.removeprefix(prefix)
    return name


def _read(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise UserError(f"weights={path}: no such file; choose none, imagenet, coco, or a file that exists")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a foreign file; all mean the same to the user
        raise UserError(f"weights={path}: not a plain file of tensors, refused ({type(error).__name__})") from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"weights={path}: not a state dict (names to tensors)")
    return state
