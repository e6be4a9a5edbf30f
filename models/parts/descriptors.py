"""GMRD's descriptors: the MLP over pixels with its filler, and the decoder of affinities [gmrd 4] [gmrd 5] [gmrd 6]."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import ops

MASK = 0xFFFFFFFF  # 32 bits
SCALE = 20.0  # of cosines, as PANet's
QUIET = 0.1  # of a random start, beside one that is chosen


class DescriptorPath(nn.Module):
    """What one class has of its own: the MLP over the pixels of an image of side `size` that generates `count`
    descriptors (with a ReLU between its layers or not), and the decoder of its affinities."""

    def __init__(self, size: int, count: int, relu: bool) -> None:
        super().__init__()
        self.size = size
        self.spread = nn.Linear(size**2, count)
        # the weights of a pixel side by side in memory, as FilledWeights takes them
        self.spread.weight = nn.Parameter(self.spread.weight.detach().T.contiguous().T)
        self.mix = nn.Sequential(nn.Dropout(0.2), nn.ReLU() if relu else nn.Identity(), nn.Linear(count, count))
        self.decoder = Decoder(count + 2, count)

    @torch.no_grad()
    def begin_with_averages(self) -> None:
        """Every descriptor begins as the average of the class around a point of its own, the decoder with the mean of
        its affinities; some of the random start stays, so that no two weights are alike."""
        self.spread.weight.mul_(QUIET).add_(windows(self.size, len(self.spread.weight)))
        self.mix[-1].weight.mul_(QUIET).add_(torch.eye(len(self.mix[-1].weight)))
        self.decoder.begin_with_mean()

    def describe(
        self, features: Tensor, masks: Tensor, edges: Tensor, pixel_order: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """Features `(B, S, C, h, w)` of a class -> descriptors `(B, S, K + 2, C)` [gmrd 4] [gmrd 5].

        K generated ones, the mean over `masks` `(B, S, H, W)`, the mean over `edges` (weights of either sign).

        The paper upsamples the features to the image, fills the pixels outside the class with samples from inside, and
        applies a linear layer over the pixels. All of this is linear in the features: filling the map equals adding a
        filled pixel's weight to the weight of the pixel it is taken from, and upsampling is pulled back likewise. So no
        map at image resolution is built, only weights.
        """
        members = masks.flatten(2).flatten(0, 1) > 0.5
        source = fill_source(members, pixel_order(members))
        height, width = (
            ops.resize_matrix(cells, pixels, features, align_corners=True)
            for cells, pixels in zip(features.shape[-2:], masks.shape[-2:], strict=True)
        )
        weights = FilledWeights.apply(self.spread.weight, source, height, width).unflatten(0, masks.shape[:2])
        anything = members.any(1).view(*masks.shape[:2], 1, 1)
        spread = weighted_sum(features, weights) * anything + self.spread.bias[:, None]
        generated = self.mix(spread.transpose(2, 3)).transpose(2, 3)
        means = torch.stack((masks, edges), dim=2)
        means = means / (means.sum((-2, -1), keepdim=True) + 1e-5)
        means = weighted_sum(features, ops.pull_back(means, features.shape[-2:], align_corners=True))
        return torch.cat((generated, means), dim=2)


def windows(size: int, count: int) -> Tensor:
    """Weights `(count, size * size)` that sum to 1 each: bells around the points of a grid over the image."""
    side = math.ceil(math.sqrt(count))
    centres = (torch.arange(side) + 0.5) * size / side
    bells = (-0.5 * ((torch.arange(size) + 0.5 - centres[:, None]) * side / size).square()).exp()
    return F.normalize((bells[:, None, :, None] * bells[None, :, None, :]).flatten(2).flatten(0, 1)[:count], p=1, dim=1)


def weighted_sum(features: Tensor, weights: Tensor) -> Tensor:
    """Features `(B, S, C, h, w)` weighted by `(B, S, K, h, w)` and summed over the cells: `(B, S, K, C)`."""
    return torch.einsum("bskhw,bschw->bskc", weights, features)


class FilledWeights(torch.autograd.Function):
    """The weights of pixels as weights of cells: each pixel's go to the cells that its features are resized from.

    Sums of rows that an index names, forward one for each cell, backward one for each pixel. So no map at image
    resolution is built, 180 MB for all descriptors of an image, and memory is read and written in whole rows.
    """

    @staticmethod
    def forward(ctx, weights: Tensor, source: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Weights `(K, P)`, sources `(N, P)` as of `fill_source`, resizings `(H, h)` and `(W, w)` -> `(N, K, h, w)`."""
        sides = rows.shape[1], columns.shape[1]
        cells, shares = (part[source] for part in resized_from(rows, columns))  # (N, P, corners)
        count, pixels, corners = sides[0] * sides[1], *cells.shape[1:]
        cells = cells + count * torch.arange(len(source), device=cells.device)[:, None, None]
        ctx.save_for_backward(cells, shares)
        by_cell = cells.flatten().int().argsort()  # half the time of int64
        first = torch.arange(len(source) * count, device=cells.device)
        first = torch.searchsorted(cells.flatten()[by_cell], first)
        picked, shares = by_cell // corners % pixels, shares.flatten()[by_cell]
        pulled = F.embedding_bag(picked, weights.T, first, mode="sum", per_sample_weights=shares)
        return pulled.view(len(source), *sides, -1).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient `(N, K, h, w)` -> that of the weights."""
        cells, shares = (part.transpose(0, 1).flatten(1) for part in ctx.saved_tensors)  # (P, N corners)
        gradient = gradient.permute(0, 2, 3, 1).flatten(0, 2).contiguous()
        return F.embedding_bag(cells, gradient, mode="sum", per_sample_weights=shares).T, None, None, None


def resized_from(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Bilinear resizings `(H, h)` and `(W, w)` of two axes as one: from which cells each pixel is resized, and their
    shares of it, both `(H W, corners)`, four unless an axis has one cell."""
    (top, y), (left, x) = (matrix.topk(min(2, matrix.shape[1])) for matrix in (rows, columns))
    shares = top[:, None, :, None] * left[None, :, None, :]
    cells = y[:, None, :, None] * columns.shape[1] + x[None, :, None, :]
    return cells.flatten(2).flatten(0, 1), shares.flatten(2).flatten(0, 1)


class Decoder(nn.Module):
    """Affinity maps `(N, inputs, h, w)` -> one logit map `(N, 1, h, w)`; convolutions without bias [gmrd 6]."""

    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(convolution(inputs, width, 1), nn.ReLU())
        self.residual = nn.Sequential(convolution(width, width, 3), nn.ReLU(), convolution(width, width, 3), nn.ReLU())
        self.leave = nn.Sequential(convolution(width, 100, 3), nn.ReLU(), nn.Dropout2d(0.1), convolution(100, 1, 1))

    def forward(self, affinity: Tensor) -> Tensor:
        """See the class."""
        entered = self.enter(affinity)
        return self.leave(entered + self.residual(entered))

    @torch.no_grad()
    def begin_with_mean(self) -> None:
        """The logit begins as SCALE times the mean of the affinities that are positive."""
        enter, *residual, reduce, leave = (m for m in self.modules() if isinstance(m, nn.Conv2d))
        for layer in (enter, *residual, reduce, leave):
            layer.weight.mul_(QUIET)
        count = len(enter.weight)
        enter.weight[:, :count, 0, 0] += torch.eye(count)
        reduce.weight[:, :, 1, 1] += 1 / count
        leave.weight += SCALE / leave.weight.shape[1]


def convolution(inputs: int, outputs: int, kernel: int) -> nn.Conv2d:
    """A convolution that keeps the size, without bias."""
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)


def fill_source(members: Tensor, order: Tensor) -> Tensor:
    """From which pixel each pixel of a filled map takes its features.

    With n members and m others: members keep their own. The j-th other takes the j-th filler: a random sample of m
    members if n >= m; else m mod n random members, then complete copies of all members in raster order. Without
    members the result means nothing.

    Args:
        members: `(N, P)` bool, the class of P pixels in raster order.
        order: `(N, P)` permutations of the pixels; a sample is the first members in this order.

    Returns:
        `(N, P)` indices.
    """
    n = members.sum(1, keepdim=True)
    m = members.shape[1] - n
    some = n.clamp(min=1)
    raster = torch.arange(members.shape[1], device=members.device).expand_as(members)
    sampled, copies = members_first(members, order), members_first(members, raster)
    drawn = torch.where(n >= m, m, m % some)
    number = (~members).cumsum(1) - 1
    sample, copy = sampled.gather(1, number.clamp(min=0)), copies.gather(1, (number - drawn) % some)
    return torch.where(members, raster, torch.where(number < drawn, sample, copy))


def members_first(members: Tensor, order: Tensor) -> Tensor:
    """Pixels `(N, P)` in the given order, but all members before all others."""
    others = ~members.gather(1, order)
    return order.gather(1, others.byte().argsort(dim=1, stable=True))


def random_order(pixels: int, seed: int, draw: Tensor) -> Tensor:
    """A permutation `(pixels,)` that is a pure function of the seed and of `draw`, an integer scalar.

    A counter through a hash instead of a torch generator: it lives on the device, in the checkpoint and in a compiled
    graph alike.
    """
    index = torch.arange(pixels, device=draw.device)
    return scramble(index ^ scramble(draw ^ scramble(torch.full_like(draw, seed & MASK)))).argsort()


def scramble(x: Tensor) -> Tensor:
    """A bijection of 32-bit integers (held in int64) that looks random: Wellons' `lowbias32`."""
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16)
