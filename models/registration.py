"""Registration: the 2D network of Balakrishnan et al., "VoxelMorph: A Learning Framework for Deformable Medical Image
Registration", IEEE TMI 2019 (arXiv 1809.05231), as VISA-FSS uses it between neighbouring slices.

A network sees two slices and answers with a displacement for every pixel; the support warped by it looks like the
query, and the support's mask warped by it is the prediction. It learns from pairs of images alone [visa 4].
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Answers, Features, FewShotMethod
from util.episode import Output
from util.errors import UserError

WIDTH, FULL_WIDTH = 32, 16  # channels within the network, and at full resolution


class Registration(FewShotMethod):
    """The support's mask, warped to the query.

    Args:
        encoder: `none`: the images themselves are registered.
        smoothness_weight: factor of the mean squared forward difference of the flow ([visa 4]; a value of ours).
        align_corners: how the grid meets the pixels. The published sampler computes positions for True and samples with
            False, which shifts and stretches by up to half a pixel [visa V9].
    """

    encoder_strides = (1,)
    default_encoder = "none"
    # the network was never published with its training: pairs, loss and rate are the recipe of [visa 4]
    recipe = {
        "train": dict(steps=10_000, optimiser="adam", learning_rate=1e-4, weight_decay=0.0, decay=1.0),
        "scans": dict(segments="superpixels"),
        "episode": dict(sampler="neighbouring", min_size=1, realistic=1.0, reach=3, carry="none"),
        "variants": {"CT": {"scans": dict(normalise="training")}, "published": {"model": dict(align_corners=False)}},
    }

    def __init__(self, encoder: nn.Module, *, smoothness_weight: float = 0.01, align_corners: bool = True) -> None:
        super().__init__(encoder)
        if encoder.strides[-1] != 1:
            raise UserError(f"method=registration moves pixels, not maps of stride {encoder.strides[-1]}: encoder=none")
        self.unet = UNet(2 * encoder.channels[-1])
        self.disp_layer = nn.Conv2d(FULL_WIDTH, 2, kernel_size=3, padding=1)
        self.smoothness_weight, self.align_corners = smoothness_weight, align_corners

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """Every support's mask warped to every query, averaged over the supports; losses from the images alone."""
        source, target = support_features[0][:, :, None], query_features[0][:, None]  # (B, S, 1, C, *), (B, 1, Q, C, *)
        shape = (len(source), source.shape[1], target.shape[2])  # (B, S, Q): one pair of images each
        source, target = (maps.expand(*shape, *maps.shape[3:]).flatten(0, 2) for maps in (source, target))
        masks = support_masks[:, :, None].expand(*shape, -1, -1).flatten(0, 2)[:, None]
        flow = self.flow(source, target)
        moved = warp(torch.cat((source, masks), 1), flow, self.align_corners)
        foreground = moved[:, -1].unflatten(0, shape).mean(1)
        logits = ops.log_probabilities(foreground)
        if query_masks is None:
            return Output(logits)
        smoothness = self.smoothness_weight * roughness(flow)
        return Output(logits, {"similarity": F.mse_loss(moved[:, :-1], target), "smoothness": smoothness})

    def flow(self, source: Tensor, target: Tensor) -> Tensor:
        """Slices `(N, C, H, W)` -> displacements `(N, 2, H, W)` of rows and columns in pixels: where a pixel of the
        target finds itself in the source."""
        return self.disp_layer(self.unet(torch.cat((source, target), 1)))

    def displacement(self, source: Tensor, target: Tensor) -> Tensor:
        """The flow in true pixels, `(N, 2, H, W)`: what a sampler of any kind adds to a pixel's position.

        If the grid is the published one, its shift and stretch are part of it.
        """
        flow = self.flow(source, target).float()
        if self.align_corners:
            return flow
        size = flow.new_tensor(flow.shape[-2:])[:, None, None]
        here = pixels(flow)
        return (here + flow) * size / (size - 1) - 0.5 - here

    @torch.inference_mode()
    def register(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """`displacement` of slices `(N, H, W)` in memory, a few at a time, on the device of the network."""
        device = self.disp_layer.weight.device
        pairs = torch.from_numpy(np.stack((source, target), 1)).split(8)
        return torch.cat([self.displacement(*pair.to(device).split(1, 1)).cpu() for pair in pairs]).numpy()


class UNet(nn.Module):
    """Image pairs `(N, channels, H, W)` -> `(N, 16, H, W)`: four strided blocks down, five up with skips [visa 4]."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.down_convs = nn.ModuleList(block(width, WIDTH, stride=2) for width in (channels, WIDTH, WIDTH, WIDTH))
        # three of the blocks on the way up see a skip beside what comes from below
        self.up_convs = nn.ModuleList(block(skips * WIDTH, WIDTH) for skips in (1, 2, 2, 2, 1))
        self.fs_conv = block(WIDTH + channels, FULL_WIDTH)

    def forward(self, images: Tensor) -> Tensor:
        """As above."""
        maps = [images]
        for down in self.down_convs:
            maps.append(down(maps[-1]))
        x = maps.pop()
        for up in self.up_convs[:3]:
            x = joined(up(x), maps.pop())
        for up in self.up_convs[3:]:
            x = up(x)
        return self.fs_conv(joined(x, maps.pop()))


def block(channels: int, width: int, stride: int = 1) -> nn.Sequential:
    """3x3 convolution, Xavier weights, leaky ReLU 0.2."""
    convolution = nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1)
    nn.init.xavier_normal_(convolution.weight)
    return nn.Sequential(convolution, nn.LeakyReLU(0.2))


def joined(deep: Tensor, skip: Tensor) -> Tensor:
    """The deep map, repeated to the size of the skip, before it."""
    return torch.cat((F.interpolate(deep, size=skip.shape[-2:], mode="nearest"), skip), 1)


@ops.in_full_precision
def warp(images: Tensor, flow: Tensor, align_corners: bool = True) -> Tensor:
    """`output(p) = image(p + flow(p))`, bilinear, 0 beyond the border.

    Args:
        images: `(N, C, H, W)`.
        flow: `(N, 2, H, W)`, rows then columns, in pixels.
        align_corners: False samples at `p * H / (H - 1) - 1/2` in place of p, as published [visa V9].
    """
    last = flow.new_tensor(flow.shape[-2:])[:, None, None] - 1
    grid = 2 * (pixels(flow) + flow) / last - 1
    grid = grid.flip(1).permute(0, 2, 3, 1)  # the sampler wants (x, y) last
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)


def pixels(flow: Tensor) -> Tensor:
    """Row and column `(2, H, W)` of every pixel of a flow."""
    rows, columns = (torch.arange(side, device=flow.device, dtype=flow.dtype) for side in flow.shape[-2:])
    return torch.stack(torch.meshgrid(rows, columns, indexing="ij"))


@ops.in_full_precision
def roughness(flow: Tensor) -> Tensor:
    """Mean squared forward difference of a flow `(N, 2, H, W)` along both axes, in pixels squared."""
    return (flow.diff(dim=2).square().mean() + flow.diff(dim=3).square().mean()) / 2
