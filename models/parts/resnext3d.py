"""3D ResNeXt as an encoder of volumes [adnet 4.1]: cardinality 32, the depth is never reduced.

Xie et al., "Aggregated residual transformations" (CVPR 2017), in the 3D form of Hara et al., "Can spatiotemporal 3D
CNNs retrace the history of 2D CNNs and ImageNet?" (CVPR 2018). Module names are those of their Kinetics checkpoints.
"""

import torch
from torch import Tensor, nn

CARDINALITY = 32


class ResNeXt3D(nn.Module):
    """The last `len(strides)` stages as maps, shallow to deep.

    The published network declares its last two stages with stride 1, so the dilation that should replace their stride
    has no effect [adnet D9]; so it is here.

    Args:
        strides: in-plane output strides of the maps, each 4, 8, 16 or 32; the paper's is `(8,)`.
        counts: number of blocks in each stage.
        widths: inner widths of the stages, multiples of 32; they give twice as many channels.
        name: of the encoder.
    """

    dims = 3

    def __init__(
        self,
        strides: tuple[int, ...],
        counts: tuple[int, ...] = (3, 4, 23, 3),
        widths: tuple[int, ...] = (128, 256, 512, 1024),
        name: str = "resnext101_3d",
    ) -> None:
        super().__init__()
        self.name = name
        self.channels = tuple(2 * width for width in widths[-len(strides) :])
        self.conv1 = nn.Conv3d(3, 64, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d((1, 3, 3), stride=(1, 2, 2), padding=(0, 1, 1))
        limits = (strides[0],) * (4 - len(strides)) + strides
        self.blocks, inputs, stride, reached = [], 64, 4, []
        for number, (width, count, limit) in enumerate(zip(widths, counts, limits, strict=True), start=1):
            step = 2 if number > 1 and 2 * stride <= limit else 1
            blocks = [Bottleneck(inputs, width, step), *(Bottleneck(2 * width, width) for _ in range(count - 1))]
            setattr(self, f"layer{number}", nn.Sequential(*blocks))
            self.blocks += blocks
            inputs, stride = 2 * width, stride * step
            reached.append(stride)
        self.strides = tuple(reached[-len(strides) :])
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, volumes: Tensor) -> tuple[Tensor, ...]:
        """Volumes `(N, 1, D, H, W)` (or 3 channels) -> maps `(N, C, D, H / stride, W / stride)`."""
        x = volumes.expand(-1, 3, -1, -1, -1).contiguous(memory_format=torch.channels_last_3d)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = [x := stage(x) for stage in (self.layer1, self.layer2, self.layer3, self.layer4)]
        return tuple(maps[-len(self.strides) :])


class Bottleneck(nn.Module):
    """1x1x1, grouped 3x3x3, 1x1x1 with batch norms, and a shortcut that is projected if the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int = 1) -> None:
        super().__init__()
        outputs, steps = 2 * width, (1, stride, stride)
        self.conv1, self.bn1 = nn.Conv3d(inputs, width, 1, bias=False), nn.BatchNorm3d(width)
        self.conv2 = nn.Conv3d(width, width, 3, stride=steps, padding=1, groups=CARDINALITY, bias=False)
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3, self.bn3 = nn.Conv3d(width, outputs, 1, bias=False), nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv3d(inputs, outputs, 1, stride=steps, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm3d(outputs))

    def forward(self, inputs: Tensor) -> Tensor:
        """`(N, C, D, H, W)` -> `(N, C', D, H / stride, W / stride)`."""
        x = self.relu(self.bn1(self.conv1(inputs)))
        x = self.relu(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(x))
        return self.relu(x + (inputs if self.downsample is None else self.downsample(inputs)))
