"""Regional prototypes: the foreground of a support is cut into Voronoi regions around K farthest points, each region is
averaged. Used by PAMI (its RPL module) and RPT [rpt A5].
"""

import numpy as np
import torch
from torch import Tensor, nn

from models.parts import ops
from util.errors import UserError

SEED = 1289  # of the published sampler


class RegionalPrototypes(nn.Module):
    """K regional prototypes of every support image.

    Args:
        count: number of regions, K.
        first_centre: how the first centre is chosen among the N foreground cells. "reset": cell floor(u N) with the
            same u at every call, so that a prediction depends on its inputs alone. "published": `choice(N)` of
            a private NumPy generator that moves on with every call (and is in no checkpoint): the result depends on
            the order of calls, and the host waits for N.
        small_organs: what an organ with fewer cells than regions does. "published": the first cells of the image join
            it [rpt R9]. "repeat": each cell is a region, and these stand several times.
    """

    def __init__(self, count: int, first_centre: str = "reset", small_organs: str = "published") -> None:
        super().__init__()
        if small_organs not in ("published", "repeat"):
            raise UserError(f"model.small_organs={small_organs}: choose one of published, repeat")
        if first_centre not in ("reset", "published"):
            raise UserError(f"model.first_centre={first_centre}: choose one of reset, published")
        self.count, self.first_centre, self.repeat = count, first_centre, small_organs == "repeat"
        self.generator = np.random.RandomState(SEED)
        self.fixed_draw = np.random.RandomState(SEED).random_sample()

    def forward(self, features: Tensor, masks: Tensor) -> Tensor:
        """Features `(B, S, C, h, w)`, masks `(B, S, H, W)` -> region means `(B, S, K, C)`."""
        regions = self.region_map(masks, features.shape[-2:])
        means = region_means(features, regions, self.count)
        if not self.repeat:
            return means
        found = (regions.flatten(2).amax(2) + 1).clamp(min=1)[..., None]
        chosen = torch.arange(self.count, device=found.device) % found
        return means.gather(2, chosen[..., None].expand_as(means))

    def region_map(self, masks: Tensor, size: tuple[int, int]) -> Tensor:
        """Masks `(B, S, H, W)` -> index of the region of every cell `(B, S, h, w)`, -1 in the background.

        As many regions as `count`; with small_organs=repeat no more than the organ has cells, maybe none.
        """
        cells = foreground_cells(masks, size, 0 if self.repeat else self.count)
        number = self.draw(cells.flatten(2).sum(2))
        first = (cells.flatten(2).cumsum(2) <= number[..., None]).sum(2)  # the cell with `number` others before it
        return voronoi_regions(cells, first, self.count)

    def draw(self, totals: Tensor) -> Tensor:
        """One number in [0, N) for each of the totals N `(B, S)`."""
        if self.first_centre == "published":
            drawn = [self.generator.choice(max(total, 1)) for total in totals.flatten().tolist()]
            return torch.tensor(drawn, device=totals.device).view_as(totals)
        return (totals * self.fixed_draw).long()


def foreground_cells(masks: Tensor, size: tuple[int, int], least: int) -> Tensor:
    """Masks `(B, S, H, W)` -> foreground of the feature map `(B, S, h, w)`, bool, at least `least` cells.

    A cell is foreground if the resized mask is not zero. If these are too few, the first `least` cells in raster
    order join them, as published: small organs share their regions with the top of the image [rpt R9].

    Raises:
        UserError: the map has fewer cells than that.
    """
    if size[0] * size[1] < least:
        raise UserError(f"model.regions={least} do not fit into a feature map of {size[0]} x {size[1]}; choose fewer")
    cells = ops.resize(masks.float()[:, :, None], size, align_corners=False)[:, :, 0] != 0
    too_few = cells.sum((2, 3), keepdim=True) < least
    first = torch.arange(size[0] * size[1], device=masks.device).view(size) < least
    return cells | (too_few & first)


def voronoi_regions(cells: Tensor, first: Tensor, count: int) -> Tensor:
    """Farthest point sampling and the nearest centre of every cell, in `count` dense steps.

    Args:
        cells: `(B, S, h, w)` bool. Images with fewer than `count` of them true have a region for each.
        first: raster index of the first centre `(B, S)`.
        count: number of centres.

    Returns:
        Index of the nearest centre `(B, S, h, w)`, in the order of their choice; -1 in the background. Distances are
        integers. Ties go to the first cell in raster order and to the earlier centre, on every device.
    """
    height, width = cells.shape[-2:]
    raster = torch.arange(height * width, device=cells.device).view(height, width)
    rows, columns = raster // width, raster % width
    nearest = torch.where(cells, height**2 + width**2, -1)
    regions = torch.full_like(nearest, -1)
    for index in range(count):
        # the raster index makes every entry different, so that no device has a tie to break
        centre = (nearest * raster.numel() - raster).flatten(2).argmax(2) if index else first
        centre = centre[..., None, None]
        distance = (rows - centre // width) ** 2 + (columns - centre % width) ** 2
        regions = torch.where(distance < nearest, index, regions)
        nearest = torch.minimum(nearest, distance)
    return regions


@ops.in_full_precision
def region_means(features: Tensor, regions: Tensor, count: int) -> Tensor:
    """Features `(B, S, C, h, w)` averaged over the regions of `(B, S, h, w)` -> `(B, S, K, C)`; of no cells: zero."""
    indices = torch.arange(count, device=regions.device)[:, None]
    members = (regions.flatten(2)[:, :, None] == indices).to(features.dtype)
    return members @ features.flatten(3).mT / members.sum(-1, keepdim=True).clamp(min=1)


def region_weights(scores: Tensor) -> Tensor:
    """Softmax over the regions whose score is not below floor((min + mean) / 2): `(*, K, 1)` -> `(*, K, 1)`.

    The floor is the published one and coarse: scores that spread over less than 1 may all pass [rpt A7].
    """
    bound = ((scores.amin(-2, keepdim=True) + scores.mean(-2, keepdim=True)) / 2).floor()
    return torch.where(scores < bound, scores - 10_000, scores).softmax(-2)
