"""PANet: Wang et al., "PANet: Few-Shot Image Semantic Segmentation with Prototype Alignment", ICCV 2019.

Each class has one prototype, the masked average of the support's features; a query pixel belongs to the class whose
prototype it resembles more. In training the predicted query segments its support, too. The baseline that the whole
family is compared with, and the template for a method of your own.
"""

import torch
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Answers, Features, FewShotMethod
from models.parts.losses import pixel_nll, weighted_nll
from util.episode import Output


class PANet(FewShotMethod):
    """PANet.

    Args:
        encoder: any 2D encoder; its deepest map is used.
        scale: factor of the cosine similarities.
        align_weight: factor of the alignment loss.
    """

    recipe = {"train": dict(steps=30_000)}

    def __init__(self, encoder: nn.Module, *, scale: float = 20.0, align_weight: float = 1.0) -> None:
        super().__init__(encoder)
        self.scale, self.align_weight = scale, align_weight

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """Prototypes from the supports, similarities on the queries; in training also the other way round."""
        support, query = support_features[-1], query_features[-1]
        logits = self.segment(support, support_masks, query)
        if query_masks is None:
            return Output(logits)
        losses = {"query": weighted_nll(logits.log_softmax(2), query_masks, background_weight=1.0)}
        if self.training:
            predicted = (logits[:, :, 1] > logits[:, :, 0]).to(logits.dtype)
            aligned = self.segment(query, predicted, support)
            losses["align"] = self.align_weight * pixel_nll(aligned.log_softmax(2), support_masks).mean()
        return Output(logits, losses)

    def segment(self, support: Tensor, masks: Tensor, query: Tensor) -> Tensor:
        """Features `(B, S, C, h, w)`, masks `(B, S, H, W)`, features `(B, Q, C, h, w)` -> logits `(B, Q, 2, H, W)`."""
        prototypes = [ops.masked_average(support, part).mean(1, keepdim=True) for part in (1 - masks, masks)]
        scores = torch.stack([self.scale * ops.cosine_map(query, prototype) for prototype in prototypes], dim=2)
        return ops.resize(scores, masks.shape[-2:], align_corners=False)
