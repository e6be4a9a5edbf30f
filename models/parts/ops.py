"""Tensor operations shared by the methods: dense, batched, differentiable, without a look at any value.

Axes as in util/episode.py: B episodes, S (or Q) images, C channels, `*` the spatial axes.
"""

import contextlib
import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

EPSILON = torch.finfo(torch.float32).eps  # clamp of probabilities before the logarithm, in all papers of the family


def full_precision(like: Tensor) -> contextlib.AbstractContextManager:
    """No autocast on the device of a tensor."""
    if like.device.type == "meta":  # has shapes only, and no autocast
        return contextlib.nullcontext()
    return torch.autocast(like.device.type, enabled=False)


def in_full_precision(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Run `function` in float32 under autocast too: a sum over the pixels of an organ overflows float16.

    Positional tensors of lower precision are converted; float64 stays. Methods can be decorated too.
    """

    @functools.wraps(function)
    def wrapped(*arguments, **options) -> Tensor:
        with full_precision(next(argument for argument in arguments if isinstance(argument, Tensor))):
            return function(*map(_at_least_float32, arguments), **options)

    return wrapped


def _at_least_float32(value):
    return value.float() if isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16) else value


def resize(maps: Tensor, size: tuple[int, ...], align_corners: bool) -> Tensor:
    """Bilinear (2D) or trilinear (3D) resize of `(..., C, *)` maps to the spatial `size`; never antialiased.

    `align_corners` has no default on purpose: the ADNet family pools with False and upsamples predictions with True.
    """
    dims = len(size)
    mode = {2: "bilinear", 3: "trilinear"}[dims]
    flat = maps.flatten(end_dim=-dims - 2)
    resized = F.interpolate(flat, size=tuple(size), mode=mode, align_corners=align_corners)
    return resized.reshape(*maps.shape[:-dims], *size)


def resize_matrix(source: int, target: int, like: Tensor, align_corners: bool = False) -> Tensor:
    """The linear map `(target, source)` that resizes one axis bilinearly."""
    identity = torch.eye(source, device=like.device, dtype=like.dtype)
    return F.interpolate(identity[None], size=target, mode="linear", align_corners=align_corners)[0].T


@in_full_precision
def pull_back(masks: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """Masks `(..., H, W)` pulled back to feature resolution `(..., h, w)` through the transposed resize.

    A depth before the rows stays as it is: no encoder reduces it. "Upsample the features to the mask, multiply, sum" is
    a linear form in the features; its weights at feature resolution are R_y^T M R_x. The same number (1e-7), without
    the map at image resolution.
    """
    rows = resize_matrix(size[0], masks.shape[-2], masks, align_corners)
    columns = resize_matrix(size[1], masks.shape[-1], masks, align_corners)
    return rows.T @ (masks @ columns)  # in this order nothing of the size of the masks is transposed


@in_full_precision
def weighted_average(features: Tensor, weights: Tensor, total: Tensor | None = None) -> Tensor:
    """`sum(F * w) / (sum(w) + 1e-5)` over space: features `(B, S, C, *)`, weights `(B, S, *)` -> `(B, S, C)`.

    `total` replaces `sum(w)` in the denominator, for weights that were pulled back from another resolution.
    """
    features, weights = features.flatten(3), weights.flatten(2)
    sums = torch.einsum("bscn,bsn->bsc", features, weights)
    total = weights.sum(-1) if total is None else total
    return sums / (total + 1e-5)[..., None]


@in_full_precision
def masked_average(features: Tensor, masks: Tensor) -> Tensor:
    """Masked average pooling at image resolution: features `(B, S, C, h, w)`, masks `(B, S, H, W)` -> `(B, S, C)`.

    Equals resizing the features to the masks (bilinear, align_corners False), then `sum(F * M) / (sum(M) + 1e-5)`.
    An empty mask gives the zero vector. Volumes have a depth before the rows, the same for both.
    """
    masks = masks.to(features.dtype)
    return weighted_average(features, pull_back(masks, features.shape[-2:]), total=masks.flatten(2).sum(-1))


@in_full_precision
def joint_masked_average(features: Tensor, masks: Tensor, align_corners: bool = False) -> Tensor:
    """`masked_average` with all images of an episode as one: `(B, Q, C, h, w)`, `(B, Q, H, W)` -> `(B, 1, C)`.

    The prototype of an alignment loss: a query in which nothing is predicted adds nothing.
    """
    masks = masks.to(features.dtype)
    weights = pull_back(masks, features.shape[-2:], align_corners).flatten(1)[:, None]
    together = features.transpose(1, 2).flatten(2)[:, None]
    return weighted_average(together, weights, total=masks.flatten(1).sum(1, keepdim=True))


def dilate(masks: Tensor, radius: int) -> Tensor:
    """Masks `(B, S, H, W)` dilated by a square of side 2 radius + 1; `radius` dilations by 3 x 3 are the same."""
    return F.max_pool2d(masks, kernel_size=2 * radius + 1, stride=1, padding=radius)


def erode(masks: Tensor, radius: int) -> Tensor:
    """Masks `(B, S, H, W)` eroded by a square of side 2 radius + 1; what lies outside the image does not erode."""
    return 1 - dilate(1 - masks, radius)


@in_full_precision
def cosine_map(features: Tensor, prototypes: Tensor) -> Tensor:
    """Cosine similarity of every feature with a prototype: `(..., C, *)` and `(..., C)` -> `(..., *)`; eps 1e-8."""
    flat = features.flatten(prototypes.ndim)
    products = torch.einsum("...cn,...c->...n", flat, prototypes)
    norms = torch.linalg.vector_norm(flat, dim=-2).clamp(min=1e-8)
    cosine = products / norms / torch.linalg.vector_norm(prototypes, dim=-1, keepdim=True).clamp(min=1e-8)
    return cosine.unflatten(-1, features.shape[prototypes.ndim :])


def foreground_probability(features: Tensor, prototypes: Tensor, thresholds: Tensor) -> Tensor:
    """`sigmoid(10 cos + t / 2)`: features `(B, Q, C, *)`, prototypes `(B, 1|Q, C)` -> `(B, Q, *)`.

    `thresholds` is one number, or `(B, 1|Q)`. Leading axes broadcast: `(B, 1, S, C, *)` with `(B, Q, 1, C)` shows every
    query's prototype to every support. Larger t means more foreground, which begins at cos = -t / 20. Written as
    in the papers' code, 1 - sigmoid((A - t) / 2) with A = -20 cos: RPT takes logarithms of differences between two such
    probabilities that are as small as their rounding.
    """
    thresholds = thresholds.reshape(*thresholds.shape, *(1,) * (features.ndim - prototypes.ndim))
    return 1 - torch.sigmoid(-10 * cosine_map(features, prototypes) - _at_least_float32(thresholds) / 2)


def log_probabilities(foreground: Tensor) -> Tensor:
    """Foreground probabilities `(B, Q, *)` -> logits `(B, Q, 2, *)`: logarithms of [1 - P, P], clamped by EPSILON."""
    both = torch.stack((1 - foreground, foreground), dim=2)
    return both.clamp(EPSILON, 1 - EPSILON).log()


def upsampled_logits(foreground: Tensor, size: tuple[int, ...], align_corners: bool = True) -> Tensor:
    """Foreground probabilities `(B, Q, *)` -> logits `(B, Q, 2, *)` at `size`.

    The family resizes PROBABILITIES, with `align_corners` (see `resize`), and takes logarithms afterwards.
    """
    return log_probabilities(resize(foreground, size, align_corners))
