"""GMRD: Cheng et al., "Few-shot medical image segmentation via generating multiple representative descriptors",
IEEE Transactions on Medical Imaging 2024.

A class is described by many vectors instead of one prototype: an MLP over the pixel axis generates them from the
features of the class, spread over the whole image. The cosines of a query with all descriptors of the foreground, and
with those of the background, are decoded into one logit map each. Described in models/spec/gmrd.md.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Answers, Features, FewShotMethod
from models.parts.descriptors import DescriptorPath, random_order
from models.parts.dual_scale import ON_LITE0, DualScale
from models.parts.losses import episode_nll, pixel_nll
from util.bookkeeping import Bookkeeping
from util.episode import Output
from util.errors import UserError

LOG_RANGE = math.log(ops.EPSILON), math.log(1 - ops.EPSILON)  # of probabilities that are clamped by EPSILON
EDGE = 2  # width of an edge in pixels


class GMRD(FewShotMethod):
    """GMRD. Generation C of its code, which trains without the paper's two losses, is the default; `mlp_relu=True,
    aux_weight=0.5` is generation B, the code at the time of acceptance; `mse_weight=0.5` is generation A, its first.

    Args:
        encoder: a 2D encoder with two maps; only the shallow one is described.
        channels: width of the features.
        image_size: side of the images in pixels, 256 in the paper: the MLPs have an input a pixel. 0: training.py and
            test.py take it from the scans.
        foreground_descriptors: how many are generated; two means (region, edge) join them.
        background_descriptors: the same for the background.
        mlp_relu: a ReLU between the layers of the MLPs.
        aux_weight: weight of the losses within and between classes.
        mse_weight: weight of the squared distance between the mean descriptors of supports and queries.
        outer_edge: "published": the background's edge as published, which is all background minus the eroded organ;
            "fixed": the ring around the organ.
        start: "published": MLPs and decoders begin at random; "averages": each descriptor as the average of its class
            around a point of the image, each decoder as the mean of its affinities.
        filler_seed: decides which pixels of a class fill the others' places; in training also the step does.
        background_weight: weight of background pixels in the query loss.
    """

    encoder_strides = (4, 8)
    # the threshold only answers empty supports; the deep map only leads to the threshold
    without_gradient = ("heads.threshold", "encoder")
    recipe = {
        "train": dict(steps=36_000, learning_rate=1e-3, decay=0.98, decay_every=3000),
        # few steps want a sensible start
        "variants": {"efficientnet_lite0": {"train": ON_LITE0, "model": dict(start="averages")}},
    }
    published = Bookkeeping(size_of="larger", consecutive=True, support_index=2)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        channels: int = 512,
        image_size: int = 0,
        foreground_descriptors: int = 100,
        background_descriptors: int = 600,
        mlp_relu: bool = False,
        aux_weight: float = 0.0,
        mse_weight: float = 0.0,
        outer_edge: str = "published",
        start: str = "published",
        filler_seed: int = 2025,
        background_weight: float = 0.1,
    ) -> None:
        super().__init__(encoder)
        if outer_edge not in ("published", "fixed"):
            raise UserError(f"model.outer_edge={outer_edge}: choose published or fixed")
        if start not in ("published", "averages"):
            raise UserError(f"model.start={start}: choose published or averages")
        if image_size < 1:
            raise UserError(f"model.image_size={image_size}: choose the side of the images in pixels")
        self.heads = DualScale(encoder, channels)
        self.background = DescriptorPath(image_size, background_descriptors, mlp_relu)
        self.foreground = DescriptorPath(image_size, foreground_descriptors, mlp_relu)
        if start == "averages":
            self.background.begin_with_averages()
            self.foreground.begin_with_averages()
        self.image_size, self.outer_edge, self.filler_seed = image_size, outer_edge, filler_seed
        self.aux_weight, self.mse_weight, self.background_weight = aux_weight, mse_weight, background_weight
        self.register_buffer("draws", torch.tensor(0))

    def encode(self, images: Tensor) -> Features:
        """Images `(N, 1, H, W)` -> map `(N, channels, h, w)`, thresholds `(N,)`.

        As published, the deep map does not learn; cutting it off also spares its backward pass.
        """
        shallow, deep = self.encoder(images)
        return self.heads((shallow, deep.detach()))

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """Describe both classes in the supports, decode the queries' affinities with them [gmrd 3]."""
        (support, _), (query, thresholds) = support_features, query_features
        if support_masks.shape[-2:] != (self.image_size, self.image_size):
            sides = "{} x {}".format(*support_masks.shape[-2:])
            raise UserError(f"model.image_size={self.image_size}: the images are {sides}; set it to their side")
        support_masks = support_masks > 0.5
        descriptors = self.describe(support, support_masks)
        nothing = query.new_zeros(query.shape[0], 1, query.shape[2])
        logits = self.answer(query, thresholds, descriptors, is_empty(support_masks), nothing)
        if query_masks is None:
            return Output(logits)
        losses = {"query": episode_nll(logits, query_masks, self.background_weight)}
        if self.training:
            predicted = logits[:, :, 1] > logits[:, :, 0]
            losses |= self.alignment_losses(support, support_masks, query, thresholds, predicted, descriptors)
        return Output(logits, losses)

    @ops.in_full_precision
    def describe(self, features: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Descriptors `(B, K, C)` of background and foreground, averaged over the images `(B, S, ...)` with foreground.

        The descriptors of an image without any are left out; if no image has any, they are zero.
        """
        masks = masks.to(features.dtype)
        inner, background = ops.erode(masks, EDGE), 1 - masks
        outer_edge = background - inner if self.outer_edge == "published" else ops.dilate(masks, EDGE) - masks
        of_foreground = self.foreground.describe(features, masks, masks - inner, self.pixel_order)
        of_background = self.background.describe(features, background, outer_edge, self.pixel_order)
        valid = masks.flatten(2).any(2).to(features.dtype)
        share = valid / valid.sum(1, keepdim=True).clamp(min=1)
        return tuple(torch.einsum("bs,bskc->bkc", share, rows) for rows in (of_background, of_foreground))

    def answer(
        self, features: Tensor, thresholds: Tensor, descriptors: tuple[Tensor, Tensor], empty: Tensor, prototype: Tensor
    ) -> Tensor:
        """Logits `(B, Q, 2, H, W)` of features `(B, Q, C, h, w)`: decoded affinities with the descriptors of both
        classes; if the support is `empty`, from one prototype `(B, 1, C)` as in Q-Net [gmrd 8]."""
        size = (self.image_size, self.image_size)
        probability = ops.foreground_probability(features, prototype, thresholds)
        decoded = class_logits(self.scores(features, descriptors), size)
        return torch.where(empty, ops.upsampled_logits(probability, size), decoded)

    def scores(self, features: Tensor, descriptors: tuple[Tensor, Tensor]) -> Tensor:
        """Decoded cosines of features `(B, Q, C, h, w)` with each class's descriptors: `(B, Q, 2, h, w)` [gmrd 6]."""
        directions = unit(features)
        decoded = [
            path.decoder(torch.einsum("bkc,bqchw->bqkhw", unit(rows), directions).flatten(0, 1))
            for path, rows in zip((self.background, self.foreground), descriptors, strict=True)
        ]
        return torch.cat(decoded, dim=1).unflatten(0, features.shape[:2])

    def alignment_losses(
        self,
        support: Tensor,
        support_masks: Tensor,
        query: Tensor,
        thresholds: Tensor,
        predicted: Tensor,
        descriptors: tuple[Tensor, Tensor],
    ) -> dict[str, Tensor]:
        """The predicted queries segment their own supports [gmrd 7]; zero if nothing is predicted."""
        empty, found_any = is_empty(support_masks), predicted.flatten(1).any(1)
        described = self.describe(query, predicted)
        prototype = ops.joint_masked_average(query, predicted, align_corners=True)
        logits = self.answer(support, thresholds.mean(1, keepdim=True), described, empty, prototype)
        align = pixel_nll(logits, support_masks).mean(1)
        losses = {"align": torch.where(found_any, align, 0.0).mean()}
        both = found_any & ~empty.flatten()
        if self.aux_weight:
            losses["aux"] = self.aux_weight * torch.where(both, class_losses(*descriptors, *described), 0.0).mean()
        if self.mse_weight:
            distance = sum(map(mean_distance, descriptors, described))
            losses["mse"] = self.mse_weight * torch.where(both, distance, 0.0).mean()
        return losses

    def pixel_order(self, members: Tensor) -> Tensor:
        """Random permutations of the pixels for `members` `(N, P)`: new ones at each call in training, else the same.

        One permutation serves all images, so that a prediction does not depend on what else is in the batch.
        """
        if self.training:
            self.draws += 1
        draw = self.draws if self.training else torch.zeros_like(self.draws)
        return random_order(members.shape[1], self.filler_seed, draw).expand_as(members)


@ops.in_full_precision
def unit(vectors: Tensor) -> Tensor:
    """Vectors along the axis of channels, `(B, K, C)` or `(B, Q, C, h, w)`, scaled to length 1."""
    return F.normalize(vectors, dim=2)


@ops.in_full_precision
def class_logits(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Scores `(B, Q, 2, h, w)` -> log-probabilities `(B, Q, 2, H, W)`, those of probabilities clamped by EPSILON."""
    return ops.resize(scores, size, align_corners=True).log_softmax(2).clamp(*LOG_RANGE)


def is_empty(masks: Tensor) -> Tensor:
    """Whether the masks `(B, S, H, W)` of an episode are all empty: `(B, 1, 1, 1, 1)`."""
    return ~masks.flatten(1).any(1)[:, None, None, None, None]


@ops.in_full_precision
def class_losses(background: Tensor, foreground: Tensor, other_background: Tensor, other_foreground: Tensor) -> Tensor:
    """Descriptors of a class agree between supports and queries, those of two classes do not [gmrd 7.3]: `(B,)`."""
    everything = (background, foreground, other_background, other_foreground)
    background, foreground, other_background, other_foreground = map(unit, everything)
    within = agreement(foreground, other_foreground) + agreement(background, other_background)
    between = mean_cosine(foreground, background).relu() + mean_cosine(other_foreground, other_background).relu()
    return 2 - within + between


def mean_distance(rows: Tensor, others: Tensor) -> Tensor:
    """Mean square of what two sets of descriptors `(B, K + 2, C)` differ by: `(B,)` [gmrd 7.4].

    Of each set remain three rows: the mean of the generated ones, and the means over region and edge.
    """
    short, other = (torch.cat((d[:, :-2].mean(1, keepdim=True), d[:, -2:]), dim=1) for d in (rows, others))
    return (short - other).square().mean((1, 2))


def mean_cosine(rows: Tensor, others: Tensor) -> Tensor:
    """Mean over all pairs of unit rows `(B, K, C)` and others: `(B,)`."""
    return (rows.mean(1) * others.mean(1)).sum(1)


def agreement(rows: Tensor, others: Tensor) -> Tensor:
    """Mean cosine of unit rows `(B, K + 2, C)` with others: generated ones with their best, means with their like."""
    best = (rows[:, :-2] @ others[:, :-2].transpose(1, 2)).amax(2)
    own = (rows[:, -2:] * others[:, -2:]).sum(2)
    return torch.cat((best, own), dim=1).mean(1)
