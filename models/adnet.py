"""ADNet: Hansen et al., "Anomaly detection-inspired few-shot medical image segmentation through self-supervision with
supervoxels", Medical Image Analysis 2022 (arXiv 2203.02048).

One foreground prototype, no model of the background: a pixel belongs to the organ if its anomaly score, -20 times
the cosine to the prototype, stays below ONE learnable threshold t. Described in models/spec/adnet.md.
"""

import torch
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Answers, Features, FewShotMethod, reduction
from models.parts.losses import pixel_nll, weighted_nll
from util.episode import Output


class ADNet(FewShotMethod):
    """ADNet in 2D.

    Args:
        encoder: any 2D encoder; its deepest map is used.
        channels: width of the features.
        threshold: initial value of t.
        background_weight: weight of background pixels in the query loss.
        threshold_weight: factor of the loss t / 20 that pushes the threshold down (`t_loss_scaler`).
    """

    recipe = {"train": dict(steps=50_000)}  # the other values are the defaults of config.py

    def __init__(
        self,
        encoder: nn.Module,
        *,
        channels: int = 256,
        threshold: float = -10.0,
        background_weight: float = 0.1,
        threshold_weight: float = 1.0,
    ) -> None:
        super().__init__(encoder)
        self.reduction = reduction(encoder, -1, channels)
        self.threshold = nn.Parameter(torch.tensor([threshold]))
        self.background_weight, self.threshold_weight = background_weight, threshold_weight

    def encode(self, images: Tensor) -> Features:
        """Images `(N, 1, H, W)` -> one map `(N, channels, h, w)`."""
        return (self.reduction(self.encoder(images)[-1]),)

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """One prototype from the supports, the soft threshold on every query [adnet 2.1]."""
        (support,), (query,) = support_features, query_features
        size = (*query.shape[3:-2], *support_masks.shape[-2:])
        support_masks = self.pooling_masks(support_masks, support)
        prototype = ops.masked_average(support, support_masks).mean(1, keepdim=True)
        probability = ops.foreground_probability(query, prototype, self.threshold)
        logits = self.upsampled_logits(probability, size)
        if query_masks is None:
            return Output(logits)
        losses = {"query": weighted_nll(logits, query_masks, self.background_weight)}
        if self.training:
            losses["align"] = self.alignment_loss(support, support_masks, query, probability)
        losses["threshold"] = self.threshold_weight * self.threshold.sum() / 20
        return Output(logits, losses, {"t": self.threshold.detach().mean()})

    def pooling_masks(self, masks: Tensor, features: Tensor) -> Tensor:
        """The support masks that pooling and alignment use: `(B, S, *)` as they are."""
        return masks

    def upsampled_logits(self, probability: Tensor, size: tuple[int, ...]) -> Tensor:
        """Foreground probabilities `(B, Q, *)` of the cells -> logits `(B, Q, 2, *)` of the pixels."""
        return ops.upsampled_logits(probability, size)

    def alignment_loss(self, support: Tensor, support_masks: Tensor, query: Tensor, probability: Tensor) -> Tensor:
        """The predicted query segments its own support [adnet 2.2]; zero for episodes in which nothing is predicted."""
        predicted = probability.detach() > 0.5
        prototype = ops.joint_masked_average(query, predicted)
        aligned = ops.foreground_probability(support, prototype, self.threshold)
        logits = ops.upsampled_logits(aligned, support_masks.shape[2:])
        loss = pixel_nll(logits, support_masks).mean(1)
        return torch.where(predicted.flatten(1).any(1), loss, 0.0).mean()
