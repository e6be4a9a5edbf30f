"""The base class of every method: what to define, what comes for free."""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from util.bookkeeping import Bookkeeping
from util.episode import Episode, Output

Features = tuple[Tensor, ...]  # maps (N, C, *) or vectors (N, C), one row per image; in `match` the rows are (B, S|Q)
Answers = Tensor | None  # masks of the queries (B, Q, *); None: they are to be predicted


class FewShotMethod(nn.Module):
    """A few-shot segmentation method: a subclass in a file of its own, `models/<name>.py`.

    A subclass defines `match` and, if it adds reductions or heads, `encode`. Its constructor takes the encoder as
    the one positional argument, and hyperparameters as keyword-only arguments with the paper's values as defaults:
    these become the `model.*` keys of the configuration.

    Attributes:
        dims: number of spatial axes, 2 or 3.
        encoder_strides: in-plane output strides of the encoder maps the paper uses, shallow to deep.
        default_encoder: `encoder=` when the user names none.
        recipe: the paper's values for `train.*`, `scans.*`, `episode.*`, `test.*` and `model.*`. Its key `variants`
            holds what differs by data set, modality, stage or protocol, as recipes again: `{"CT": {"scans": ...}}`.
        published: habits of its published code that are no options.
        progress: part of the training that is done, 0 to 1, for losses that grow; the trainer sets it before each step.
    """

    dims: ClassVar[int] = 2
    encoder_strides: ClassVar[tuple[int, ...]] = (8,)
    default_encoder: ClassVar[str] = "resnet101"
    recipe: ClassVar[Mapping[str, Any]] = {}
    published: ClassVar[Bookkeeping] = Bookkeeping()
    progress: float = 0.0

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def encode(self, images: Tensor) -> Features:
        """Images `(N, C, *)` -> features, a tuple of tensors with N rows each."""
        return tuple(self.encoder(images))

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """Segment the queries.

        Args:
            support_features: tensors `(B, S, ...)`, the rows of `encode`.
            support_masks: `(B, S, *)` at image resolution.
            query_features: tensors `(B, Q, ...)`.
            query_masks: `(B, Q, *)`, or None: then there are no losses.
        """
        raise NotImplementedError

    def forward(self, episode: Episode) -> Output:
        """Encode and match one batch of episodes."""
        support_features, query_features = self._encode_both(episode)
        return self.match(support_features, episode.support_masks, query_features, episode.query_masks)

    def _encode_both(self, episode: Episode) -> tuple[Features, Features]:
        """2D: support and query in ONE encoder batch, so that batch statistics span both, as the papers train.

        3D: two batches, each with its own statistics, as the paper trains [adnet 4.1]; their depths may differ.
        """
        supports, queries = episode.support_images, episode.query_images
        flat = supports.flatten(0, 1), queries.flatten(0, 1)
        if self.dims == 3:
            support_features, query_features = map(self.encode, flat)
        else:
            both = [features.split([len(rows) for rows in flat]) for features in self.encode(torch.cat(flat))]
            support_features, query_features = zip(*both, strict=True)
        return (
            tuple(features.unflatten(0, supports.shape[:2]) for features in support_features),
            tuple(features.unflatten(0, queries.shape[:2]) for features in query_features),
        )


def reduction(encoder: nn.Module, position: int, channels: int) -> nn.Module:
    """1x1 convolution without bias from an encoder map to `channels`; nothing if the map has that width already."""
    width = encoder.channels[position]
    if width == channels:
        return nn.Identity()
    return (nn.Conv2d if encoder.dims == 2 else nn.Conv3d)(width, channels, kernel_size=1, bias=False)
