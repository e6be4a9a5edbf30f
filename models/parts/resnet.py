"""torchvision's ResNets with dilation in place of stride, as encoders.

ADNet and ALPNet take layer4 at stride 8 (dilation flags [F, T, T]); the Q-Net family takes layer3 at stride 4 and
layer4 at stride 8 ([T, T, F]; [gmrd 2]). One rule gives both: a stage keeps its stride only where the map may be
coarser.
"""

import torch
from torch import Tensor, nn

from models.parts.torchvision_shim import torchvision


class ResNetEncoder(nn.Module):
    """The last `len(strides)` stages of a ResNet trunk as maps, shallow to deep.

    Args:
        name: resnet18, resnet50 or resnet101.
        strides: output strides of these maps, e.g. `(8,)` or `(4, 8)`; each 4, 8, 16 or 32.
    """

    dims = 2

    def __init__(self, name: str, strides: tuple[int, ...]) -> None:
        super().__init__()
        self.name = name
        self.backbone = getattr(torchvision().models, name)(weights=None)
        del self.backbone.fc, self.backbone.avgpool
        self.stages = list(self.backbone.children())[-4:]
        self.blocks = [block for stage in self.stages for block in stage]
        wanted = (strides[0],) * (4 - len(strides)) + strides
        self.strides = tuple(_restride(self.stages, wanted)[-len(strides) :])
        widths = (64, 128, 256, 512)[-len(strides) :]
        self.channels = tuple(self.blocks[0].expansion * width for width in widths)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images `(N, 1, H, W)` (or 3 channels) -> maps `(N, C, H / stride, W / stride)`."""
        trunk = self.backbone
        x = images.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        x = trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(x))))
        maps = [x := stage(x) for stage in self.stages]
        return tuple(maps[-len(self.strides) :])


def _restride(stages: list[nn.Sequential], wanted: tuple[int, ...]) -> list[int]:
    """Trade stride for dilation until no stage is coarser than wanted; return the strides reached.

    As torchvision does it: the first block of a stage whose stride is removed keeps the dilation so far, the others
    take the doubled one.
    """
    stride, dilation, reached = 4, 1, []
    for index, (stage, limit) in enumerate(zip(stages, wanted, strict=True)):
        before, step = dilation, 1 if index == 0 else 2
        if stride * step > limit:
            dilation, step = dilation * step, 1
        stride *= step
        for position, block in enumerate(stage):
            _set(block, step if position == 0 else 1, before if position == 0 else dilation)
        reached.append(stride)
    return reached


def _set(block: nn.Module, stride: int, dilation: int) -> None:
    """Stride on the block's strided convolution and its shortcut, dilation on every 3x3 convolution.

    In a basic block (resnet18) the second 3x3 convolution is dilated like the first.
    """
    for convolution in (m for m in block.children() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
        convolution.dilation = convolution.padding = (dilation, dilation)
    strided = block.conv2 if hasattr(block, "conv3") else block.conv1
    strided.stride = (stride, stride)
    if block.downsample is not None:
        block.downsample[0].stride = (stride, stride)
