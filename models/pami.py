"""PAMI: Zhu et al., "Partition-A-Medical-Image: Extracting Multiple Representative Sub-regions for Few-shot Medical
Image Segmentation", IEEE Transactions on Instrumentation and Measurement 2024 (arXiv 2309.11172).

The support's organ is cut into regions with a prototype each (RPL). What in them does not fit the query is taken out,
step by step and with the help of the query's own coarse prototype (PRD), and their mean segments the query.
Described in models/spec/rpt.md, part A.
"""

import torch
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Answers, Features, FewShotMethod
from models.parts.dual_scale import ON_LITE0, DualScale
from models.parts.losses import episode_nll, pixel_nll
from models.parts.regions import RegionalPrototypes, region_weights
from models.parts.transformer import Projected, TransformerBlock
from util.bookkeeping import Bookkeeping
from util.episode import Output
from util.errors import UserError


class PAMI(FewShotMethod):
    """PAMI. With several shots each keeps its own regions and tokens; prototypes are averaged over shots.

    Args:
        encoder: with maps at strides 4 and 8.
        channels: width of the features.
        regions: regions of a support, K.
        iterations: passes through the one debiasing block.
        heads: of its attention.
        dropout: in its attention.
        transformer_gain: factor of what its transformer adds to the regions, at the start. With 1, as published, random
            weights hide the organ's prototype (cosine 0.3), and nothing is predicted until they are small.
        first_centre: "reset" or "published", see RegionalPrototypes.
        small_organs: "published" or "repeat", see there, too.
        threshold_head: "published" or "steady", see parts/dual_scale.py.
        scale_weights: of the predictions at strides 4 and 8 (alpha). A scale of weight zero is neither made nor
            computed, except with first_centre=published: the published code draws, computes and drops it [rpt R4].
        assembly: the support's part in the assembled prediction, the rest is the query's (lambda). The published code
            has 1, which switches the assembly off; the paper's own value is unknown [rpt R3].
        background_weight: weight of background pixels in the query loss.
        mse_weight: factor of the loss between the prototypes of query and support.
    """

    encoder_strides = (4, 8)
    recipe = {
        # of 50000 steps asked for, whole passes of 3000 are run
        "train": dict(steps=48_000, learning_rate=1e-3, frozen_norm=False, decay=0.98, decay_every=3000),
        "variants": {
            "published": {"model": dict(first_centre="published")},
            # its maps are coarser: organs have fewer cells than there are regions; its features are 4 times as large,
            # so their squared distances 16 times; few steps want a quiet start
            "efficientnet_lite0": {
                "train": ON_LITE0,
                "model": dict(threshold_head="steady", small_organs="repeat", mse_weight=1 / 16, transformer_gain=0.1),
            },
        },
    }
    published = Bookkeeping(size_of="larger", consecutive=True, support_index=2)

    def __init__(
        self,
        encoder: nn.Module,
        *,
        channels: int = 512,
        regions: int = 64,
        iterations: int = 3,
        heads: int = 3,
        dropout: float = 0.1,
        transformer_gain: float = 1.0,
        first_centre: str = "reset",
        small_organs: str = "published",
        threshold_head: str = "published",
        scale_weights: tuple[float, float] = (1.0, 0.0),
        assembly: float = 1.0,
        background_weight: float = 0.1,
        mse_weight: float = 1.0,
    ) -> None:
        super().__init__(encoder)
        if len(scale_weights) != 2 or min(scale_weights) < 0 or sum(scale_weights) == 0:
            raise UserError(f"model.scale_weights={list(scale_weights)}: choose two, none negative, one positive")
        both = first_centre == "published"
        self.dual_scale = DualScale(encoder, channels, scale_weights, both=both, threshold_head=threshold_head)
        self.regions = RegionalPrototypes(regions, first_centre, small_organs)
        self.block = Debiasing(regions, channels, heads, dropout)  # one for all iterations and scales, as published
        nn.init.constant_(self.block.transformer.norm.weight, transformer_gain)
        self.iterations, self.assembly = iterations, assembly
        self.background_weight, self.mse_weight = background_weight, mse_weight

    def encode(self, images: Tensor) -> Features:
        """Images `(N, 1, H, W)` -> one map `(N, channels, h, w)` per scale, and one threshold per image `(N,)`."""
        return self.dual_scale(self.encoder(images))

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """Each scale on its own, then their fusion [rpt A4]. Lists have an entry for every scale."""
        *supports, support_thresholds = support_features
        *queries, query_thresholds = query_features
        size = support_masks.shape[-2:]
        prototypes = [ops.masked_average(support, support_masks).mean(1, keepdim=True) for support in supports]
        coarse = self.dual_scale.predict(queries, prototypes, query_thresholds)
        query_prototypes = [ops.weighted_average(*scale) for scale in zip(queries, coarse, strict=True)]
        regions = [self.regions(support, support_masks) for support in supports]
        scales = zip(regions, queries, query_prototypes, strict=True)
        logits = self.fused_logits([self.refine(*scale, query_thresholds) for scale in scales], size)
        if query_masks is None:
            return Output(logits)
        losses = {"query": episode_nll(logits, query_masks, self.background_weight)}
        if self.training:
            coarse = self.fused_logits(self.dual_scale.predict(queries, query_prototypes, query_thresholds), size)
            losses["coarse"] = episode_nll(coarse, query_masks, background_weight=1.0)
            predicted = logits[:, :, 1] > logits[:, :, 0]
            losses |= self.alignment_losses(supports, support_masks, support_thresholds, prototypes, queries, predicted)
        return Output(logits, losses, {"t": query_thresholds.detach().mean()})

    def alignment_losses(
        self,
        supports: list[Tensor],
        support_masks: Tensor,
        thresholds: Tensor,
        prototypes: list[Tensor],
        queries: list[Tensor],
        predicted: Tensor,
    ) -> dict[str, Tensor]:
        """Each predicted query's prototype segments every support, at the SUPPORT's threshold, and resembles its
        prototype; zero for queries in which nothing is predicted."""
        predicted_prototypes = [ops.masked_average(query, predicted) for query in queries]
        pairs = [support[:, None] for support in supports], [one[:, :, None] for one in predicted_prototypes]
        logits = self.fused_logits(self.dual_scale.predict(*pairs, thresholds[:, None]), support_masks.shape[-2:])
        align = pixel_nll(logits, support_masks[:, None])
        mse = (self.dual_scale.fuse(predicted_prototypes) - self.dual_scale.fuse(prototypes)).square().mean(2)
        has_foreground = predicted.flatten(2).any(2)
        return {
            "align": torch.where(has_foreground, align, 0.0).mean(),
            "mse": self.mse_weight * torch.where(has_foreground, mse, 0.0).mean(),
        }

    def refine(self, regions: Tensor, query: Tensor, own: Tensor, thresholds: Tensor) -> Tensor:
        """Debias the regions against every query slice, in float32, and segment it.

        Regions `(B, S, K, C)`, queries `(B, Q, C, h, w)`, their own coarse prototypes `(B, Q, C)` -> `(B, Q, h, w)`.
        """
        tokens = regions[:, None].expand(-1, query.shape[1], -1, -1, -1)  # (B, Q, S, K, C)
        with ops.full_precision(query):
            for _ in range(self.iterations):
                tokens = self.block(tokens, own[:, :, None, None])
                by_support = ops.foreground_probability(query, tokens.mean((2, 3)), thresholds)
                own = ops.weighted_average(query, by_support)
        if self.assembly == 1:
            return by_support
        return torch.lerp(ops.foreground_probability(query, own, thresholds), by_support, self.assembly)

    def fused_logits(self, probabilities: list[Tensor], size: tuple[int, int]) -> Tensor:
        """Probabilities `(B, Q, h, w)` of every scale -> logits `(B, Q, 2, H, W)`."""
        return ops.log_probabilities(self.dual_scale.fused(probabilities, size))


class Debiasing(nn.Module):
    """PRD: adapts regional prototypes R `(*, K, C)` to a query's prototype q `(*, 1, C)` [rpt A7].

    One transformer, one merging layer and one norm take all their roles. Layers that the published code declares and
    never uses [rpt R13] are not made.
    """

    def __init__(self, regions: int, channels: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.injection = nn.Linear(regions, regions)
        self.transformer = TransformerBlock(channels, heads, dropout)
        self.region_gate = nn.Linear(2, 1)
        self.channel_gate = nn.Sequential(
            nn.Linear(channels, channels // 16, bias=False), nn.ReLU(), nn.Linear(channels // 16, channels, bias=False)
        )
        self.region_fusion = fusion(2 * regions, regions)
        self.channel_fusion = fusion(2 * channels, channels)
        self.merge = nn.Linear(2 * channels, channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, regions: Tensor, query: Tensor) -> Tensor:
        """R and q -> R, debiased."""
        # the layer mixes K copies of q, so that each region gets a multiple of q and a constant
        informed = regions + self.injection.weight.sum(1)[:, None] * query + self.injection.bias[:, None]
        projected = self.transformer.attention.project(informed, informed)
        attended = self.transformer.attend(informed, projected)
        by_self = self.multi_direction(attended)
        if self.training:
            attended = self.transformer.attend(informed, projected)  # with a dropout of its own
        by_query = self.interactive(regions, informed, attended, query, projected)
        merged = self.merge(torch.cat((by_query, by_self), -1))
        return self.norm(self.transformer(merged) + regions)

    def multi_direction(self, tokens: Tensor) -> Tensor:
        """MS: gates on regions and on channels, each fused with the other's."""
        # published: the INDEX of the largest channel, not its value, drives the gate [rpt R5]
        index = tokens.argmax(-1, keepdim=True).to(tokens.dtype)
        described = torch.cat((index, tokens.mean(-1, keepdim=True)), -1)
        by_region = tokens * self.region_gate(described).sigmoid()
        by_channel = tokens * self.channel_gate(tokens.mean(-2, keepdim=True)).sigmoid()
        along_regions = self.region_fusion(torch.cat((by_region, tokens), -2).mT).mT
        along_channels = self.channel_fusion(torch.cat((by_channel, tokens), -1))
        return self.merge(torch.cat((self.transformer(along_regions), self.transformer(along_channels)), -1))

    def interactive(
        self, regions: Tensor, informed: Tensor, attended: Tensor, query: Tensor, projected: Projected
    ) -> Tensor:
        """ID: regions near the query take up the mean region (and nothing of the query itself [rpt R7]).

        `projected`: the informed regions', whose keys and values serve here, too.
        """
        weights = region_weights(attended @ self.transformer(query).mT)
        asking = self.norm(weights * regions.mean(-2, keepdim=True) + informed)
        attention = self.transformer.attention
        queries = attention.split(attention.queries(asking))
        return self.transformer.attend(asking, (queries, *projected[1:]))


def fusion(inputs: int, outputs: int) -> nn.Sequential:
    """Two linear layers with a GELU between, no biases."""
    return nn.Sequential(nn.Linear(inputs, outputs, bias=False), nn.GELU(), nn.Linear(outputs, outputs, bias=False))
