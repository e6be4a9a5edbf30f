"""RPT: Zhu et al., "Few-Shot Medical Image Segmentation via a Region-Enhanced Prototypical Transformer", MICCAI 2023
(arXiv 2309.04825).

One average hides how varied an organ looks, so the support's organ is cut into regions with a prototype each. Blocks of
a transformer push aside the regions that differ from the query's coarse prototype, and the mean of the remaining
evidence segments the query, whose own prototype is refined with it. Described in models/spec/rpt.md, part B.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Answers, Features, FewShotMethod
from models.parts.dual_scale import DualScale
from models.parts.losses import episode_nll, pixel_nll
from models.parts.regions import RegionalPrototypes, region_weights
from models.parts.transformer import TransformerBlock
from util.bookkeeping import Bookkeeping
from util.episode import Output


class RPT(FewShotMethod):
    """RPT. Only the fine map and the threshold of the encoder's heads are made: the published second map is not used.

    With several shots each one keeps its own regions and tokens; what is averaged over shots is the prototypes.

    Args:
        encoder: with maps at strides 4 and 8.
        channels: width of the features.
        regions: regions of a support, K.
        iterations: passes through the one block.
        heads: of its attention.
        dropout: in its attention.
        first_centre: "reset" or "published", see RegionalPrototypes.
        background_weight: weight of background pixels in the query loss.
        periphery_weight: factor of the periphery loss.
        mse_weight: factor of the loss between the prototypes of query and support.
    """

    encoder_strides = (4, 8)
    recipe = {
        "train": dict(
            steps=40_000, learning_rate=1e-3, frozen_norm=False, decay=0.98, decay_every=5000, save_every=5000
        ),
        "variants": {"published": {"model": dict(first_centre="published")}},
    }
    published = Bookkeeping(size_of="larger", consecutive=True, support_index=2)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        channels: int = 512,
        regions: int = 100,
        iterations: int = 3,
        heads: int = 3,
        dropout: float = 0.1,
        first_centre: str = "reset",
        background_weight: float = 0.1,
        periphery_weight: float = 0.1,
        mse_weight: float = 0.1,
    ) -> None:
        super().__init__(encoder)
        self.dual_scale = DualScale(encoder, channels=channels, coarse=False)
        self.regions = RegionalPrototypes(regions, first_centre)
        self.block = BiasAlleviatedTransformer(channels, heads, dropout)
        self.iterations = iterations
        self.background_weight = background_weight
        self.periphery_weight = periphery_weight
        self.mse_weight = mse_weight

    def encode(self, images: Tensor) -> Features:
        """Images `(N, 1, H, W)` -> one map `(N, channels, h, w)` and one threshold per image `(N,)`."""
        return self.dual_scale(self.encoder(images))

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """Regions of the supports, blocks, and the last prototype on every query slice [rpt A4] [rpt B]."""
        (support, support_thresholds), (query, query_thresholds) = support_features, query_features
        size = support_masks.shape[-2:]
        global_prototypes = ops.masked_average(support, support_masks)
        global_prototype = global_prototypes.mean(1, keepdim=True)
        regions = self.regions(support, support_masks)
        prototypes = self.refine(regions, global_prototype, query, query_thresholds)
        logits = ops.upsampled_logits(ops.foreground_probability(query, prototypes, query_thresholds), size)
        if query_masks is None:
            return Output(logits)
        periphery = self.periphery_loss(support, support_masks, global_prototypes, support_thresholds)
        losses = {
            "query": episode_nll(logits, query_masks, self.background_weight).mean(),
            "periphery": self.periphery_weight * periphery,
        }
        if self.training:
            predicted = logits[:, :, 1] > logits[:, :, 0]
            found = predicted.flatten(2).any(2)
            own = ops.masked_average(query, predicted)
            align = alignment_loss(support, support_masks, own, query_thresholds)
            mse = (own - global_prototype).square().mean(2)
            losses["align"] = torch.where(found, align, 0.0).mean()
            losses["mse"] = self.mse_weight * torch.where(found, mse, 0.0).mean()
            losses["consistency"] = self.consistency_loss(query, query_masks, query_thresholds)
        return Output(logits, losses, {"t": query_thresholds.detach().mean()})

    def refine(self, regions: Tensor, global_prototype: Tensor, query: Tensor, thresholds: Tensor) -> Tensor:
        """Regions `(B, S, K, C)` against every query slice, in float32 -> prototypes `(B, Q, C)`."""
        tokens = regions[:, None].expand(-1, query.shape[1], -1, -1, -1)  # (B, Q, S, K, C)
        prototypes = global_prototype
        with torch.autocast(query.device.type, enabled=False):
            for _ in range(self.iterations):
                coarse = ops.foreground_probability(query, prototypes, thresholds)
                tokens = self.block(tokens, ops.weighted_average(query, coarse)[:, :, None, None])
                prototypes = tokens.mean((2, 3)) + global_prototype
        return prototypes

    def periphery_loss(self, support: Tensor, masks: Tensor, prototypes: Tensor, thresholds: Tensor) -> Tensor:
        """What the prototype of the dilated organ finds more than the organ's own `(B, S, C)` is the ring around it.

        The difference is no probability: if negative, it is clamped and gives no gradient [rpt R21].
        """
        dilated = F.max_pool2d(masks, kernel_size=3, stride=1, padding=1)
        both = (ops.masked_average(support, dilated), prototypes)
        wider, own = (ops.foreground_probability(support, prototype, thresholds) for prototype in both)
        wider, own = (ops.resize(found, masks.shape[-2:], align_corners=True) for found in (wider, own))
        return pixel_nll(ops.log_probabilities(wider - own), dilated - masks).mean()

    def consistency_loss(self, query: Tensor, query_masks: Tensor, thresholds: Tensor) -> Tensor:
        """The query's true prototype segments the query itself."""
        prototypes = ops.masked_average(query, query_masks == 1)
        probability = ops.foreground_probability(query, prototypes, thresholds)
        logits = ops.upsampled_logits(probability, query_masks.shape[-2:])
        return episode_nll(logits, query_masks, background_weight=1.0).mean()


class BiasAlleviatedTransformer(nn.Module):
    """BaT: weigh the regions by their similarity to the query, add the query accordingly, let them see each other."""

    def __init__(self, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.transformer = TransformerBlock(channels, heads, dropout)

    def forward(self, regions: Tensor, query: Tensor) -> Tensor:
        """Regions `(*, K, C)`, query prototype `(*, 1, C)` -> regions."""
        weights = region_weights(regions @ query.mT)
        return self.transformer(self.norm(weights * query + regions))


def alignment_loss(support: Tensor, masks: Tensor, prototypes: Tensor, thresholds: Tensor) -> Tensor:
    """Prototypes of the queries `(B, Q, C)`, with the queries' thresholds, segment every support -> `(B, Q)`."""
    probability = ops.foreground_probability(support[:, None], prototypes[:, :, None], thresholds[:, :, None])
    return pixel_nll(ops.upsampled_logits(probability, masks.shape[-2:]), masks[:, None])
