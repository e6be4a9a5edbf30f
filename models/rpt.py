"""RPT: Zhu et al., "Few-Shot Medical Image Segmentation via a Region-Enhanced Prototypical Transformer", MICCAI 2023
(arXiv 2309.04825).

One average hides how varied an organ looks, so the support's organ is cut into regions with a prototype each. Blocks of
a transformer push aside the regions that differ from the query's coarse prototype, and the mean of the remaining
evidence segments the query, whose own prototype is refined with it. Described in models/spec/rpt.md, part B.
"""

import torch
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Answers, Features, FewShotMethod
from models.parts.dual_scale import ON_LITE0, DualScale
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
        small_organs: "published" or "repeat", see there, too.
        threshold_head: "published" or "steady", see parts/dual_scale.py.
        background_weight: weight of background pixels in the query loss.
        periphery_weight: factor of the periphery loss.
        mse_weight: factor of the loss between the prototypes of query and support.
    """

    encoder_strides = (4, 8)
    recipe = {
        "train": dict(
            steps=40_000, learning_rate=1e-3, frozen_norm=False, decay=0.98, decay_every=5000, save_every=5000
        ),
        "variants": {
            "published": {"model": dict(first_centre="published")},
            # its maps are coarser: organs have fewer cells than there are regions; its features are 4 times as large,
            # so their squared distances 16 times
            "efficientnet_lite0": {
                "train": ON_LITE0,
                "model": dict(threshold_head="steady", small_organs="repeat", mse_weight=0.1 / 16),
            },
        },
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
        small_organs: str = "published",
        threshold_head: str = "published",
        background_weight: float = 0.1,
        periphery_weight: float = 0.1,
        mse_weight: float = 0.1,
    ) -> None:
        super().__init__(encoder)
        self.dual_scale = DualScale(encoder, channels, threshold_head=threshold_head)
        self.regions = RegionalPrototypes(regions, first_centre, small_organs)
        self.block = BiasAlleviatedTransformer(channels, heads, dropout)
        self.iterations, self.background_weight = iterations, background_weight
        self.periphery_weight, self.mse_weight = periphery_weight, mse_weight

    def encode(self, images: Tensor) -> Features:
        """Images `(N, 1, H, W)` -> one map `(N, channels, h, w)` and one threshold per image `(N,)`."""
        return self.dual_scale(self.encoder(images))

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """Regions of the supports, blocks, and the last prototype on every query slice [rpt A4] [rpt B]."""
        (support, support_thresholds), (query, query_thresholds) = support_features, query_features
        global_prototypes = ops.masked_average(support, support_masks)
        global_prototype = global_prototypes.mean(1, keepdim=True)
        regions = self.regions(support, support_masks)
        prototypes = self.refine(regions, global_prototype, query, query_thresholds)
        logits = segment(query, prototypes, query_thresholds, support_masks)
        if query_masks is None:
            return Output(logits)
        periphery = self.periphery_loss(support, support_masks, global_prototypes, support_thresholds)
        losses = {
            "query": episode_nll(logits, query_masks, self.background_weight),
            "periphery": self.periphery_weight * periphery,
        }
        if self.training:
            predicted = logits[:, :, 1] > logits[:, :, 0]
            has_foreground = predicted.flatten(2).any(2)
            query_prototypes = ops.masked_average(query, predicted)
            # every query's prototype, at the query's threshold, segments every support: (B, Q, 2, S, H, W)
            pairs = support[:, None], query_prototypes[:, :, None], query_thresholds[:, :, None]
            align = pixel_nll(segment(*pairs, support_masks), support_masks[:, None])
            mse = (query_prototypes - global_prototype).square().mean(2)
            losses["align"] = torch.where(has_foreground, align, 0.0).mean()
            losses["mse"] = self.mse_weight * torch.where(has_foreground, mse, 0.0).mean()
            # the query's true prototype segments the query itself
            logits_by_truth = segment(query, ops.masked_average(query, query_masks == 1), query_thresholds, query_masks)
            losses["consistency"] = episode_nll(logits_by_truth, query_masks, background_weight=1.0)
        return Output(logits, losses, {"t": query_thresholds.detach().mean()})

    def refine(self, regions: Tensor, global_prototype: Tensor, query: Tensor, thresholds: Tensor) -> Tensor:
        """Regions `(B, S, K, C)` against every query slice, in float32 -> prototypes `(B, Q, C)`."""
        tokens = regions[:, None].expand(-1, query.shape[1], -1, -1, -1)  # (B, Q, S, K, C)
        prototypes = global_prototype
        with ops.full_precision(query):
            for _ in range(self.iterations):
                coarse = ops.foreground_probability(query, prototypes, thresholds)
                tokens = self.block(tokens, ops.weighted_average(query, coarse)[:, :, None, None])
                prototypes = tokens.mean((2, 3)) + global_prototype
        return prototypes

    def periphery_loss(self, support: Tensor, masks: Tensor, prototypes: Tensor, thresholds: Tensor) -> Tensor:
        """What the prototype of the dilated organ finds more than the organ's own `(B, S, C)` is the ring around it.

        The difference is no probability: if negative, it is clamped and gives no gradient [rpt R21].
        """
        dilated = ops.dilate(masks, 1)
        both = ops.masked_average(support, dilated), prototypes
        both = (ops.foreground_probability(support, prototype, thresholds) for prototype in both)
        wider, organ = (ops.resize(probability, masks.shape[-2:], align_corners=True) for probability in both)
        return pixel_nll(ops.log_probabilities(wider - organ), dilated - masks).mean()


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


def segment(features: Tensor, prototypes: Tensor, thresholds: Tensor, masks: Tensor) -> Tensor:
    """Logits at the size of the masks; the other arguments as `ops.foreground_probability` takes them."""
    return ops.upsampled_logits(ops.foreground_probability(features, prototypes, thresholds), masks.shape[-2:])
