"""A tiny real encoder: two maps, quick, no pretrained weights."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class TinyEncoder(nn.Module):
    """Average-pooled images through two layers: maps at the strides a method asks for."""

    def __init__(self, strides: tuple[int, ...], dims: int = 2, channels: int = 6) -> None:
        super().__init__()
        self.dims, self.strides, self.channels = dims, strides, tuple(channels + i for i in range(len(strides)))
        convolution, norm = (nn.Conv2d, nn.BatchNorm2d) if dims == 2 else (nn.Conv3d, nn.BatchNorm3d)
        self.layers = nn.ModuleList(
            nn.Sequential(convolution(1, width, 3, padding=1), norm(width)) for width in self.channels
        )

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """`(N, 1, *)` -> one map per stride; the depth of a volume is kept."""
        maps = []
        for layer, stride in zip(self.layers, self.strides, strict=True):
            size = (*images.shape[2:-2], *(max(side // stride, 1) for side in images.shape[-2:]))
            pooled = (F.adaptive_avg_pool2d if self.dims == 2 else F.adaptive_avg_pool3d)(images, size)
            maps.append(torch.tanh(layer(pooled)))
        return tuple(maps)
