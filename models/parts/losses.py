"""Losses shared by the methods. Axes as in util/episode.py: B episodes, S (or Q) images, `*` the spatial axes."""

import functools

import torch
from torch import Tensor

from models.parts.ops import EPSILON
from util.episode import IGNORE


def weighted_nll(log_probability: Tensor, masks: Tensor, background_weight: float) -> Tensor:
    """Class-weighted negative log likelihood over all pixels of the batch, a scalar.

    `(B, Q, 2, *)` against `(B, Q, *)`; weights [background_weight, 1], pixels of value 255 are ignored, and the sum is
    divided by the summed weights [training 2.6].
    """
    target = masks.long()
    weights = torch.where(target == 1, 1.0, background_weight) * (target != IGNORE)
    chosen = torch.where(target == 1, log_probability[:, :, 1], log_probability[:, :, 0])
    return -(weights * chosen).sum() / weights.sum().clamp(min=EPSILON)


def episode_nll(log_probability: Tensor, masks: Tensor, background_weight: float) -> Tensor:
    """The mean over the episodes of their own `weighted_nll`, a scalar."""
    loss = functools.partial(weighted_nll, background_weight=background_weight)
    return torch.vmap(loss)(log_probability[:, None], masks[:, None]).mean()


def pixel_nll(log_probability: Tensor, masks: Tensor) -> Tensor:
    """Unweighted pixel mean of the negative log likelihood, per image: `(B, S, 2, *)`, `(B, S, *)` -> `(B, S)`."""
    chosen = torch.where(masks > 0.5, log_probability[:, :, 1], log_probability[:, :, 0])
    return -chosen.flatten(2).mean(-1)
