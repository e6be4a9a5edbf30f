"""Q-Net: Shen et al., "Q-Net: query-informed few-shot medical image segmentation", IntelliSys 2023 (arXiv 2208.11451).

ADNet on two scales of features, with a threshold that is predicted from the query image instead of learned once for
all. At test time the prototype adapts to each query slice: Adam improves it until the slice, with its foreground
replaced by the prototype, reconstructs itself. Described in models/spec/qnet.md.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Answers, Features, FewShotMethod
from models.parts.dual_scale import ON_LITE0, DualScale
from models.parts.losses import episode_nll, pixel_nll
from util.bookkeeping import Bookkeeping
from util.episode import Output
from util.errors import UserError

BETAS, ADAM_EPSILON = (0.9, 0.999), 1e-8


class QNet(FewShotMethod):
    """Q-Net.

    Args:
        encoder: a 2D encoder with two maps.
        channels: width of the features.
        fine_weight: weight of the prediction from the shallow map, alpha in the paper; the deep map has the rest. The
            paper's README uses 0.9 in setting 1 and 0.6 in setting 2, in the test only; here it holds for training too.
        refinement_steps: Adam steps on the prototypes at test time, a scale and a slice; 0 = no refinement.
        refinement_rate: their learning rate.
        refinement_bce: "published": the cross entropy with swapped arguments, which never has its minimum at the
            reconstruction and raises every channel by steps * rate. "intended": reconstruction against original.
        threshold_head: "published" or "steady", see parts/dual_scale.py.
        background_weight: weight of background pixels in the query loss.
    """

    encoder_strides = (4, 8)
    recipe = {
        "train": dict(steps=30_000, learning_rate=1e-3, frozen_norm=False, decay=0.98, decay_every=1000),
        "variants": {"efficientnet_lite0": {"train": ON_LITE0, "model": dict(threshold_head="steady")}},
    }
    published = Bookkeeping(size_of="larger", consecutive=True, support_index=2)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        channels: int = 512,
        fine_weight: float = 0.9,
        refinement_steps: int = 7,
        refinement_rate: float = 0.01,
        refinement_bce: str = "published",
        threshold_head: str = "published",
        background_weight: float = 0.1,
    ) -> None:
        super().__init__(encoder)
        if not 0 <= fine_weight <= 1:
            raise UserError(f"model.fine_weight={fine_weight}: choose a number from 0 to 1")
        if refinement_bce not in ("published", "intended"):
            raise UserError(f"model.refinement_bce={refinement_bce}: choose published or intended")
        self.heads = DualScale(encoder, channels, (fine_weight, 1 - fine_weight), threshold_head=threshold_head)
        self.refinement_steps, self.refinement_rate = refinement_steps, refinement_rate
        self.refinement_bce, self.background_weight = refinement_bce, background_weight

    def encode(self, images: Tensor) -> Features:
        """Images `(N, 1, H, W)` -> maps `(N, channels, h, w)` of each scale, then thresholds `(N,)`."""
        return self.heads(self.encoder(images))

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """One prototype per scale, adapted to the query in evaluation, compared at the query's threshold [qnet 4]."""
        (*supports, _), (*queries, thresholds) = support_features, query_features
        size = support_masks.shape[-2:]
        prototypes = [ops.masked_average(support, support_masks).mean(1, keepdim=True) for support in supports]
        if not self.training and self.refinement_steps:
            prototypes = [self.refine(*scale, thresholds) for scale in zip(prototypes, queries, strict=True)]
        probability = self.heads.fused(self.heads.predict(queries, prototypes, thresholds), size)
        logits = ops.log_probabilities(probability)
        if query_masks is None:
            return Output(logits)
        losses = {"query": episode_nll(logits, query_masks, self.background_weight)}
        if self.training:
            losses["align"] = self.alignment_loss(supports, support_masks, queries, thresholds, probability)
        return Output(logits, losses, {"t": thresholds.detach().mean()})

    def alignment_loss(
        self, supports: Features, support_masks: Tensor, queries: Features, thresholds: Tensor, probability: Tensor
    ) -> Tensor:
        """The predicted query segments its own support, at the query's threshold [qnet 6]; zero if it is empty."""
        predicted = probability.detach() > 0.5
        prototypes = [ops.joint_masked_average(query, predicted) for query in queries]
        aligned = self.heads.predict(supports, prototypes, thresholds.mean(1, keepdim=True))
        aligned = self.heads.fused(aligned, support_masks.shape[-2:])
        loss = pixel_nll(ops.log_probabilities(aligned), support_masks).mean(1)
        return torch.where(predicted.flatten(1).any(1), loss, 0.0).mean()

    @torch.no_grad()
    def refine(self, prototype: Tensor, features: Tensor, thresholds: Tensor) -> Tensor:
        """Adam on the prototype `(B, 1, C)` of one scale, for every query slice by itself -> `(B, Q, C)` [qnet 5].

        Written out, with the gradient by hand: evaluation runs in inference mode, where there is no autograd.
        """
        features = features.float()
        prototype = prototype.float().expand(*features.shape[:3])
        fixed = fixed_part(features, self.refinement_bce)
        momentum = energy = torch.zeros_like(prototype)
        for step in range(1, self.refinement_steps + 1):
            foreground = ops.foreground_probability(features, prototype, thresholds) > 0.5
            gradient = reconstruction_gradient(features, fixed, prototype, foreground, self.refinement_bce)
            momentum = BETAS[0] * momentum + (1 - BETAS[0]) * gradient
            energy = BETAS[1] * energy + (1 - BETAS[1]) * gradient.square()
            direction = momentum / (1 - BETAS[0] ** step)
            scale = (energy / (1 - BETAS[1] ** step)).sqrt() + ADAM_EPSILON
            prototype = prototype - self.refinement_rate * direction / scale
        return prototype


@ops.in_full_precision
def reconstruction_gradient(
    features: Tensor, fixed: Tensor, prototypes: Tensor, foreground: Tensor, bce: str
) -> Tensor:
    """Gradient of the reconstruction loss with respect to the prototypes, `(B, Q, C)`.

    F' is F `(B, Q, C, h, w)` with the prototype c `(B, Q, C)` inside the foreground `(B, Q, h, w)`. Both are scaled to
    [0, 1] by their own minimum and maximum, to u and u', and squashed: x = sigmoid(u), y = sigmoid(u'). The loss is
    the mean over elements of BCE(input x, target y) = -(y log x + (1 - y) log(1 - x)), "published", or of BCE(input y,
    target x), "intended". The gradient flows through the minimum and the maximum of F' too. F' itself is never built:
    inside, all positions of a channel have one value, so their slopes have a closed sum. `fixed`: see `fixed_part`.
    """
    features, fixed, inside = features.flatten(3), fixed.flatten(3), foreground.flatten(2)
    outside, count = (~inside).to(features), inside.sum(-1, keepdim=True)
    lowest, share_of_lowest = replaced_extreme(torch.amin, features, prototypes, inside)
    highest, share_of_highest = replaced_extreme(torch.amax, features, prototypes, inside)
    extent = (highest - lowest).clamp(min=ops.EPSILON)

    unit = (features - lowest[..., None]) / extent[..., None]
    slopes = loss_slope(unit.sigmoid(), fixed, 1, bce)
    slope_sum = torch.einsum("bqcn,bqn->bq", slopes, outside)[..., None]
    moment_sum = torch.einsum("bqcn,bqn->bq", slopes.mul_(unit), outside)[..., None]

    unit = (prototypes - lowest) / extent
    fixed = torch.einsum("bqcn,bqn->bqc", fixed, 1 - outside)
    slopes = loss_slope(unit.sigmoid(), fixed, count, bce)
    slope_sum = slope_sum + slopes.sum(-1, keepdim=True)
    moment_sum = moment_sum + (slopes * unit).sum(-1, keepdim=True)
    gradient = slopes + share_of_lowest * (moment_sum - slope_sum) - share_of_highest * moment_sum
    return gradient / extent / features[0, 0].numel()


def loss_slope(y: Tensor, fixed: Tensor, count: Tensor | int, bce: str) -> Tensor:
    """Derivative of the loss (times the number of elements) over u', summed over `count` elements with one y.

    `fixed` is the sum of u ("published") or of x ("intended") over these elements.
    """
    return fixed * y * (y - 1) if bce == "published" else count * y - fixed


def fixed_part(features: Tensor, bce: str) -> Tensor:
    """What the loss takes from the original features `(B, Q, C, h, w)`: u if "published", x if "intended"."""
    space = (2, 3, 4)
    lowest, highest = features.amin(space, keepdim=True), features.amax(space, keepdim=True)
    unit = (features - lowest) / (highest - lowest).clamp(min=ops.EPSILON)
    return unit if bce == "published" else unit.sigmoid()


def replaced_extreme(
    extreme: Callable[..., Tensor], features: Tensor, prototypes: Tensor, inside: Tensor
) -> tuple[Tensor, Tensor]:
    """Minimum or maximum `(B, Q, 1)` of F', and the share `(B, Q, C)` of its gradient that each channel of c gets.

    Ties share equally, as in torch's reductions: c counts once for every position inside.
    """
    outer = extreme(features, 2)
    value = extreme(torch.where(inside, extreme(prototypes, -1, keepdim=True), outer), -1, keepdim=True)
    own = (prototypes == value) * inside.sum(-1, keepdim=True)
    others = ((outer == value) & ~inside).sum(-1, keepdim=True)
    return value, own.to(features) / (own.sum(-1, keepdim=True) + others)
