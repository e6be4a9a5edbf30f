"""The contract between data and methods.

Axes: B episodes, S support images (shots), Q query images, C channels, then the spatial axes `*`: `(H, W)` in 2D,
`(D, H, W)` in 3D. There is no axis of ways: organs are segmented one by one. Support and query may differ in depth.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

IGNORE = 255  # value of query masks that no loss looks at


@dataclass(frozen=True)
class Episode:
    """One batch of few-shot tasks: segment the queries, given the annotated supports.

    Attributes:
        support_images: `(B, S, C, *)` float.
        support_masks: `(B, S, *)` float, 1 on the organ, 0 elsewhere.
        query_images: `(B, Q, C, *)` float.
        query_masks: `(B, Q, *)` integer (0, 1, or 255 = ignore), or None whenever the answer is to be predicted.
        neighbours: `(B,)`, 1 if the queries are neighbouring slices of one scan in ascending order, or None.

    Raises:
        ValueError: the shapes do not belong together.

    Examples:
        Four tasks, each with one annotated image and two images to segment:

        >>> episode = Episode(torch.rand(4, 1, 1, 64, 64), torch.ones(4, 1, 64, 64), torch.rand(4, 2, 1, 64, 64))
        >>> Episode.stack([episode, episode]).query_images.shape
        torch.Size([8, 2, 1, 64, 64])
        >>> Episode(episode.support_images, episode.support_masks[:, 0], episode.query_images)
        Traceback (most recent call last):
        ValueError: not an episode: a mask for every support image; got shapes [(4, 1, 1, 64, 64), (4, 64, 64)]
    """

    support_images: Tensor
    support_masks: Tensor
    query_images: Tensor
    query_masks: Tensor | None = None
    neighbours: Tensor | None = None

    def __post_init__(self) -> None:
        supports, queries = self.support_images.shape, self.query_images.shape
        alike = len(supports) in (5, 6) and len(queries) == len(supports)
        _expect(alike, "images are (B, S|Q, C, H, W) or with D", supports, queries)
        _expect(supports[0] == queries[0], "support and query hold the same number of episodes", supports, queries)
        masks = self.support_masks.shape
        _expect(masks == supports[:2] + supports[3:], "a mask for every support image", supports, masks)
        if self.query_masks is not None:
            masks = self.query_masks.shape
            _expect(masks == queries[:2] + queries[3:], "a mask for every query image", queries, masks)

    @staticmethod
    def stack(episodes: Sequence["Episode"]) -> "Episode":
        """Join episodes along B. All must have the same shapes, and all or none have answers."""
        columns = {f.name: [getattr(episode, f.name) for episode in episodes] for f in fields(Episode)}
        return Episode(**{name: None if values[0] is None else torch.cat(values) for name, values in columns.items()})

    def map(self, function) -> "Episode":
        """Apply `function` to every tensor."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return Episode(**{name: None if value is None else function(value) for name, value in values.items()})

    def to(self, device: torch.device | str) -> "Episode":
        """Move to `device`, without waiting if the memory is pinned."""
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Episode":
        """The same in page-locked memory, from which a GPU copies while it computes."""
        return self.map(Tensor.pin_memory)


@dataclass(frozen=True)
class Output:
    """What a method answers.

    Attributes:
        logits: `(B, Q, 2, *)`, background then foreground; log-probabilities are valid logits.
        losses: scalars by name, already weighted; the trainer minimises their sum. Empty when there are no answers.
        diagnostics: detached scalars that metrics.csv shows beside the losses, e.g. a predicted threshold.
    """

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    diagnostics: dict[str, Tensor] = field(default_factory=dict)

    @property
    def loss(self) -> Tensor:
        """The sum of all losses, a scalar."""
        return torch.stack(list(self.losses.values())).sum()

    @property
    def probabilities(self) -> Tensor:
        """Foreground probability `(B, Q, *)`."""
        return self.logits.softmax(dim=2)[:, :, 1]

    @property
    def masks(self) -> Tensor:
        """Predicted masks `(B, Q, *)`, bool; ties go to the background."""
        return self.logits[:, :, 1] > self.logits[:, :, 0]


def _expect(condition: bool, rule: str, *shapes: torch.Size) -> None:
    if not condition:
        raise ValueError(f"not an episode: {rule}; got shapes {[tuple(shape) for shape in shapes]}")
