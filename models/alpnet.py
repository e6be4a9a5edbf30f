"""ALPNet: Ouyang et al., "Self-supervision with Superpixels: Training Few-shot Medical Image Segmentation without
Annotation", ECCV 2020 (arXiv 2007.09886).

One vector cannot stand for a background of many tissues, so each class keeps LOCAL prototypes: the features averaged in
the cells of a grid that lie inside its mask. A query pixel listens to the prototypes that resemble it: its score is the
mean of its similarities, weighted by their own softmax. Described in models/spec/alpnet.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Answers, Features, FewShotMethod, reduction
from models.parts.losses import pixel_nll, weighted_nll
from util.bookkeeping import Bookkeeping
from util.episode import Output
from util.errors import UserError

SMALLEST_CELL = 4  # features; a foreground that fills no cell of this side gets no local prototypes


class ALPNet(FewShotMethod):
    """ALPNet, and PANet's global prototypes for comparison.

    Args:
        encoder: any 2D encoder; its deepest map is used.
        channels: width of the features.
        prototypes: "grid": local prototypes; "mask": one masked average for each class, as in PANet.
        grid: cells along each axis in training.
        test_cell: side of a cell in features in testing, where cells are finer than in training.
        foreground_threshold: a cell is foreground if more than this part of it is.
        background_threshold: the same for the background.
        scale: factor of the cosine similarities.
        background_weight: weight of background pixels in the query loss.
        align_weight: factor of the alignment loss.
    """

    recipe = {
        "train": dict(steps=100_000),  # the other values are the defaults of config.py
        "scans": dict(segments="superpixels"),
        "episode": dict(sampler="slice", min_size=1, augment="both"),
        "variants": {"CT": {"scans": dict(normalise="training")}},
    }
    published = Bookkeeping(part_rule="extent", fold_order="circular", recorder="alpnet")

    def __init__(
        self,
        encoder: nn.Module,
        *,
        channels: int = 256,
        prototypes: str = "grid",
        grid: int = 8,
        test_cell: int = 2,
        foreground_threshold: float = 0.95,
        background_threshold: float = 0.95,
        scale: float = 20.0,
        background_weight: float = 0.05,
        align_weight: float = 1.0,
    ) -> None:
        super().__init__(encoder)
        if prototypes not in ("grid", "mask"):
            raise UserError(f"model.prototypes={prototypes}: choose one of grid, mask")
        self.reduction = reduction(encoder, -1, channels)
        self.prototypes, self.grid, self.test_cell, self.scale = prototypes, grid, test_cell, scale
        self.foreground_threshold, self.background_threshold = foreground_threshold, background_threshold
        self.background_weight, self.align_weight = background_weight, align_weight

    def encode(self, images: Tensor) -> Features:
        """Images `(N, 1, H, W)` -> one map `(N, channels, h, w)`."""
        return (self.reduction(self.encoder(images)[-1]),)

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """Scores of both classes at feature resolution, upsampled to logits [alpnet 9]."""
        support, query = support_features[0].float(), query_features[0].float()
        with ops.full_precision(query):  # scores reach 20, where float16 has steps of 0.016
            foreground = ops.resize(support_masks.float(), support.shape[-2:], align_corners=False)
            scores = self.scores(support, foreground, query)
            logits = ops.resize(scores, support_masks.shape[-2:], align_corners=False)
            if query_masks is None:
                return Output(logits)
            losses = {"query": weighted_nll(logits.log_softmax(2), query_masks, self.background_weight)}
            if self.training:
                losses["align"] = self.align_weight * self.alignment_loss(support, support_masks, query, scores)
            return Output(logits, losses)

    def scores(self, support: Tensor, foreground: Tensor, query: Tensor) -> Tensor:
        """Score maps of background and foreground, `(B, Q, 2, h, w)` within [-scale, scale].

        Features of support `(B, S, C, h, w)` and query; soft masks `(B, S, h, w)`, whose rest is the background.
        """
        background = self.local_score(query, *self.background_prototypes(support, 1 - foreground))
        return torch.stack((background, self.local_score(query, *self.foreground_prototypes(support, foreground))), 2)

    def background_prototypes(self, support: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The cells inside the background; if there is none, its masked average [alpnet 8.2].

        The published code fails there and skips the episode [alpnet D11]. The average is what the paper itself gives a
        foreground too small for a cell; a background of no pixel at all scores 0.
        """
        cells, inside = self.cells(support, masks, self.background_threshold)
        average = ops.weighted_average(support, masks).mean(1, keepdim=True)
        return self._choose(inside.any(1, keepdim=True), cells, inside, average)

    def foreground_prototypes(self, support: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """The cells inside the foreground with every shot's masked average; of a small one, the average alone (8.2).

        What is small is asked of fixed cells, in testing too, where the cells have another size.
        """
        cells, inside = self.cells(support, masks, self.foreground_threshold)
        averages = ops.weighted_average(support, masks)
        smallest = [min(SMALLEST_CELL, side) for side in masks.shape[-2:]]
        filled = F.avg_pool2d(masks, smallest).flatten(1).amax(1, keepdim=True)
        cells, inside = torch.cat((cells, averages), 1), F.pad(inside, (0, averages.shape[1]), value=True)
        return self._choose(filled >= self.foreground_threshold, cells, inside, averages.mean(1, keepdim=True))

    def cells(self, support: Tensor, masks: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """The grid of every shot: averages `(B, S K, C)`, and which cells lie inside the mask `(B, S K)`."""
        sides = masks.shape[-2:]
        cell = [max(1, side // self.grid) if self.training else min(self.test_cell, side) for side in sides]
        averages = F.avg_pool2d(support.flatten(0, 1), cell).unflatten(0, support.shape[:2])
        inside = F.avg_pool2d(masks, cell) > threshold
        return averages.flatten(3).transpose(2, 3).flatten(1, 2), inside.flatten(1)

    def _choose(self, use_grid: Tensor, cells: Tensor, inside: Tensor, average: Tensor) -> tuple[Tensor, Tensor]:
        """All prototypes `(B, P, C)`, and which take part `(B, P)`: the cells inside if `use_grid` `(B, 1)`, else the
        global average, so that no softmax is over nothing."""
        if self.prototypes == "mask":
            return average, torch.ones_like(use_grid)
        return torch.cat((cells, average), 1), torch.cat((inside & use_grid, ~use_grid), 1)

    def similarities(self, query: Tensor, prototypes: Tensor) -> Tensor:
        """`(B, Q, C, h, w)`, `(B, P, C)` -> scaled cosines `(B, Q, P, h, w)`; norms are at least 1e-4 [alpnet 8]."""
        directions, pixels = F.normalize(prototypes, dim=2, eps=1e-4), F.normalize(query, dim=2, eps=1e-4)
        return self.scale * torch.einsum("bpc,bqchw->bqphw", directions, pixels)

    def local_score(self, query: Tensor, prototypes: Tensor, takes_part: Tensor) -> Tensor:
        """`sum_k softmax_k(d_k) d_k` over the prototypes that take part [alpnet 8.1] -> `(B, Q, h, w)`.

        Of one prototype it is the similarity itself, which is PANet's score.
        """
        similarities = self.similarities(query, prototypes)
        attended = similarities.masked_fill(~takes_part[:, None, :, None, None], float("-inf"))
        return (attended.softmax(2) * similarities).sum(2)

    def alignment_loss(self, support: Tensor, support_masks: Tensor, query: Tensor, scores: Tensor) -> Tensor:
        """The predicted queries, together as shots, segment their supports [alpnet 9.5]; the mean over all images."""
        predicted = (scores[:, :, 1] > scores[:, :, 0]).to(query.dtype)
        aligned = ops.resize(self.scores(query, predicted, support), support_masks.shape[-2:], align_corners=False)
        return pixel_nll(aligned.log_softmax(2), support_masks).mean()
