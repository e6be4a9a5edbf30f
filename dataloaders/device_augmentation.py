"""The changes of augmentation.py made to a whole batch of slices on its device, from the same draws.

A loader then hands over slices as they are, with what was drawn: a core makes about twice as many episodes, and a GPU
does the rest beside its training (episode.on_device).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from dataloaders.augmentation import BiasField, Change, Gamma, Warp, apply_changes
from util.episode import Episode


@dataclass(frozen=True)
class Unchanged:
    """A batch of episodes before the changes of their slices.

    Attributes:
        episode: slices and masks as they are.
        changes: of every image, those of an episode together: its support, then its queries.
    """

    episode: Episode
    changes: Sequence[Sequence[Change]]

    @staticmethod
    def stack(batches: Sequence["Unchanged"]) -> "Unchanged":
        """Join along B."""
        return Unchanged(
            Episode.stack([one.episode for one in batches]), [own for one in batches for own in one.changes]
        )

    def map(self, function: Callable) -> "Unchanged":
        """Apply `function` to every tensor of the episode."""
        return Unchanged(self.episode.map(function), self.changes)

    def pin_memory(self) -> "Unchanged":
        """The same in page-locked memory, from which a GPU copies while it computes."""
        return Unchanged(self.episode.pin_memory(), self.changes)

    def to(self, device: torch.device | str) -> Episode:
        """The episodes on `device`, changed."""
        given = self.episode.to(device)
        images = torch.cat((given.support_images, given.query_images), 1)
        masks = torch.cat((given.support_masks, given.query_masks.to(given.support_masks.dtype)), 1)
        shape = masks.shape
        images, masks = change(images.flatten(0, 2), masks.flatten(0, 1), self.changes)
        images, masks = images.view(shape)[:, :, None], masks.view(shape)
        return Episode(
            support_images=images[:, :1],
            support_masks=masks[:, :1],
            query_images=images[:, 1:],
            query_masks=masks[:, 1:].to(given.query_masks.dtype),
            neighbours=given.neighbours,
        )


def change(images: Tensor, masks: Tensor, changes: Sequence[Sequence[Change]]) -> tuple[Tensor, Tensor]:
    """Images `(N, H, W)` and masks `(N, H, W)`, both float -> the same after the changes of each; masks stay 0 or 1."""
    images, masks = images.clone(), masks.clone()
    for place in range(max(map(len, changes))):
        at = {row: own[place] for row, own in enumerate(changes) if place < len(own)}
        for kind in dict.fromkeys(map(type, at.values())):
            alike = {row: one for row, one in at.items() if type(one) is kind}
            rows = torch.tensor(list(alike), device=images.device)
            made = CHANGED.get(kind, one_by_one)(images[rows], masks[rows], list(alike.values()))
            images[rows], masks[rows] = made
    return images, masks


def gamma(images: Tensor, masks: Tensor, changes: Sequence[Gamma]) -> tuple[Tensor, Tensor]:
    """`Gamma` of every image."""
    low, high = images.amin((1, 2), keepdim=True), images.amax((1, 2), keepdim=True)
    span = high - low + 1e-5
    exponents = _on(images, [one.exponent for one in changes])[:, None, None]
    return span * ((images - low + 1e-5) / span) ** exponents + low, masks


def bias_field(images: Tensor, masks: Tensor, changes: Sequence[BiasField]) -> tuple[Tensor, Tensor]:
    """`BiasField` of every image."""
    u, v = (torch.linspace(-1, 1, side, device=images.device) for side in images.shape[1:])
    u = u[:, None]
    terms = torch.stack(torch.broadcast_tensors(torch.ones_like(u * v), u, v, u * v, u**2, v**2))
    field = torch.einsum("nk,khw->nhw", _on(images, np.stack([one.coefficients for one in changes])), terms).exp()
    low = images.amin((1, 2), keepdim=True)
    return (images - low) * field + low, masks


def warp(images: Tensor, masks: Tensor, changes: Sequence[Warp]) -> tuple[Tensor, Tensor]:
    """`Warp` of every image and mask."""
    shape = images.shape[1:]
    y, x = torch.meshgrid(
        *(torch.arange(side, device=images.device, dtype=torch.float32) for side in shape), indexing="ij"
    )
    backward = _on(images, np.stack([np.linalg.inv(one.matrix(shape).astype(np.float64))[:2] for one in changes]))
    places = torch.einsum("nij,jhw->nihw", backward, torch.stack((x, y, torch.ones_like(x))))
    both = _sample(torch.stack((images, masks), 1), places, "zeros")
    bent = [row for row, one in enumerate(changes) if one.noise is not None]
    if bent:
        rows = torch.tensor(bent, device=images.device)
        both[rows] = _sample(both[rows], _displaced([changes[row] for row in bent], x, y), "reflection")
    return both[:, 0], both[:, 1].round()


def one_by_one(images: Tensor, masks: Tensor, changes: Sequence[Change]) -> tuple[Tensor, Tensor]:
    """Changes that are written for single images, such as `Noise`: made on the CPU."""
    views = zip(images.cpu().numpy(), masks.cpu().numpy(), strict=True)
    made = [apply_changes([one], *view) for one, view in zip(changes, views, strict=True)]
    return tuple(_on(images, np.stack(arrays)) for arrays in zip(*made, strict=True))


CHANGED: dict[type[Change], Callable] = {Gamma: gamma, Warp: warp, BiasField: bias_field}


def _displaced(changes: Sequence[Warp], x: Tensor, y: Tensor) -> Tensor:
    """Columns and rows `(N, 2, H, W)` where the elastic part samples, as `Warp.displacement` says."""
    field = 2 * _on(x, np.stack([one.noise for one in changes])) - 1
    weights = _on(x, cv2.getGaussianKernel(21, 5.0).ravel())
    field = functional.pad(field, (10, 10, 10, 10), mode="reflect").flatten(0, 1)[:, None]
    field = functional.conv2d(functional.conv2d(field, weights[None, None, :, None]), weights[None, None, None])
    elastic = _on(x, [one.elastic for one in changes])[:, None, None, None]
    return torch.stack((x, y)) + elastic * field.view(len(changes), 2, *x.shape)


def _sample(images: Tensor, places: Tensor, border: str) -> Tensor:
    """Images `(N, C, H, W)` at columns and rows `(N, 2, H, W)`, bilinear."""
    sides = _on(images, images.shape[:1:-1])
    grid = (2 * places.permute(0, 2, 3, 1) + 1) / sides - 1  # -1 and 1 are the outer edges of the outer pixels
    return functional.grid_sample(images, grid, padding_mode=border, align_corners=False)


def _on(like: Tensor, values: np.ndarray | Sequence[float]) -> Tensor:
    """Numbers as float32 on the device of a tensor."""
    return torch.as_tensor(np.asarray(values, np.float32)).to(like.device, non_blocking=True)
