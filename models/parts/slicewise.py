"""A 2D encoder on volumes: every slice by itself, with its pretrained weights, and neighbours mixed at the end."""

import torch.nn.functional as F
from torch import Tensor, nn


class SliceWise(nn.Module):
    """What a 2D encoder sees on every slice, exactly, plus what a small network adds from the slices around.

    That network starts by adding nothing, so the pretrained features are there from the first step on. Slices as a
    batch are far cheaper on a CPU than 3D convolutions with kernels one slice deep, and are the same.
    """

    dims = 3

    def __init__(self, slices: nn.Module) -> None:
        super().__init__()
        self.slices = slices
        self.name, self.channels, self.strides = slices.name, slices.channels, slices.strides
        self.blocks = getattr(slices, "blocks", [])
        self.centred = getattr(slices, "centred", False)
        self.mixers = nn.ModuleList(DepthMixer(channels) for channels in slices.channels)

    def forward(self, volumes: Tensor) -> tuple[Tensor, ...]:
        """Volumes `(N, 1, D, H, W)` -> maps `(N, C, D, H / stride, W / stride)`."""
        images = volumes.transpose(1, 2).flatten(0, 1)
        maps = (features.unflatten(0, (len(volumes), -1)).transpose(1, 2) for features in self.slices(images))
        return tuple(mixer(features) for mixer, features in zip(self.mixers, maps, strict=True))


class DepthMixer(nn.Module):
    """A residual of two convolutions along the depth, over five slices; the second one starts at zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gather = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        self.add = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0))
        nn.init.zeros_(self.add.weight)
        nn.init.zeros_(self.add.bias)

    def forward(self, features: Tensor) -> Tensor:
        """`(N, C, D, h, w)` -> the same."""
        return features + self.add(F.relu(self.gather(features)))
