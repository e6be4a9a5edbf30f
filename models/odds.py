"""Odds: dense label transfer on two scales, decoded to pixels. A method of this project.

Prototypes answer in cells and forget where the organ lay. Here every cell of the annotated slices keeps its say: it is
a kernel in feature space, and a query cell gets the log odds of the organ's density against that of the rest, at two
scales. A light decoder turns the odds, how much the cell resembles either class, the place of the organ in the support
and the query's own finer maps into one answer at stride 4. It corrects the odds, it does not replace them: at the start
it adds nothing, so training begins with a sensible answer for any organ, however small.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Answers, Features, FewShotMethod
from util.episode import IGNORE, Output

EMPTY = 1e-2  # cells: what a class without any is taken to have
SMALLEST = 1e-5  # share of a cell, before the logarithm


class Odds(FewShotMethod):
    """Odds.

    Args:
        encoder: a 2D encoder with three maps, the deepest at four times the stride of the finest.
        width: channels of the decoder at the deepest map.
        keys: channels of the features that are compared.
        temperature: factor of the cosines, at the start; well below 80, where its exponential leaves float32.
        place: whether the decoder sees where the organ lies in the support.
        swap: weight of the losses with support and query exchanged.
        cells: weight of the losses of the odds themselves.
        dice: weight of the Dice loss beside the cross entropy.
    """

    encoder_strides = (4, 8, 16)
    default_encoder = "efficientnet_lite0"
    recipe = {
        "train": dict(steps=5000, optimiser="adam", learning_rate=7e-4, weight_decay=1e-5, decay=0.8, decay_every=0),
        "episode": dict(augment="both", bias_field=0.3, shift=20.0, rotation=12.0, zoom=[0.8, 1.25]),
    }

    def __init__(
        self,
        encoder: nn.Module,
        *,
        width: int = 64,
        keys: int = 128,
        temperature: float = 20.0,
        place: bool = True,
        swap: float = 1.0,
        cells: float = 0.5,
        dice: float = 1.0,
    ) -> None:
        super().__init__(encoder)
        fine, middle, deep = encoder.channels
        self.deep_keys = _keys(deep, keys)
        self.middle_keys = _keys(middle + deep, keys // 2)
        self.log_temperature = nn.Parameter(torch.tensor(temperature).log())
        self.prior = nn.Parameter(torch.full((2,), 0.5))  # how far the organ's share of the support counts, a scale
        self.offset = nn.Parameter(torch.zeros(2))
        clues = 5 + place
        self.sides = nn.ModuleList(
            [nn.Conv2d(c, w, 1) for c, w in ((deep, width), (middle, width // 2), (fine, width // 4))]
        )
        self.decoders = nn.ModuleList(
            [
                _decoder(width + clues, width, width),
                _decoder(width + width // 2 + clues, width, width // 2),
                _decoder(width // 2 + width // 4, width // 2, width // 4),
            ]
        )
        self.correction = nn.Conv2d(width // 4, 1, 1)
        nn.init.normal_(self.correction.weight, std=1e-3)
        nn.init.zeros_(self.correction.bias)
        self.place, self.swap, self.cells, self.dice = place, swap, cells, dice

    def encode(self, images: Tensor) -> Features:
        """Images `(N, 1, H, W)` -> the encoder's three maps, then the keys of the middle and of the deep scale."""
        fine, middle, deep = self.encoder(images)
        both = torch.cat((middle, ops.resize(deep, middle.shape[-2:], align_corners=False)), 1)
        return fine, middle, deep, self.middle_keys(both), self.deep_keys(deep)

    def match(
        self, support_features: Features, support_masks: Tensor, query_features: Features, query_masks: Answers = None
    ) -> Output:
        """The odds of every cell, decoded; in training also with support and query exchanged."""
        support_masks = support_masks.float()
        answer, odds = self.answer(support_features, support_masks, query_features)
        logits = torch.stack((torch.zeros_like(answer), answer), 2)
        if query_masks is None:
            return Output(logits)
        losses = self.losses(answer, odds, query_masks, "query")
        if self.training and self.swap:
            exchanged = self.answer(query_features, (query_masks == 1).float(), support_features)
            back = self.losses(*exchanged, support_masks, "swap")
            losses |= {name: self.swap * loss for name, loss in back.items()}
        return Output(logits, losses, {"temperature": self.log_temperature.detach().exp()})

    def answer(self, supports: Features, masks: Tensor, queries: Features) -> tuple[Tensor, list[Tensor]]:
        """Logits `(B, Q, H, W)`, and the odds `(B, Q, h, w)` of the deep and of the middle scale."""
        size, images = masks.shape[-2:], queries[0].shape[:2]
        (*maps, _, _), temperature = queries, self.log_temperature.exp()
        odds, inputs = [], [[side(m.flatten(0, 1))] for side, m in zip(self.sides, maps[::-1], strict=True)]
        for scale, (support, query) in enumerate(zip(supports[:-3:-1], queries[:-3:-1], strict=True)):
            clues = compare(support, masks, query, temperature, self.prior[scale])
            odds.append(clues[:, :, 0] + self.offset[scale])
            inputs[scale].append(clues.flatten(0, 1))
            if self.place:
                inputs[scale].append(self.whereabouts(masks, clues).flatten(0, 1))
        decoded = []
        for decoder, parts in zip(self.decoders, inputs, strict=True):
            finer = parts[0].shape[-2:]
            decoded = [decoder(torch.cat((*parts, *(ops.resize(d, finer, align_corners=False) for d in decoded)), 1))]
        both = odds[1] + ops.resize(odds[0], odds[1].shape[-2:], align_corners=False)
        correction = self.correction(*decoded)[:, 0].unflatten(0, images)
        start = ops.resize(both / 2, correction.shape[-2:], align_corners=False)
        return ops.resize(start + correction, size, align_corners=False), odds

    def whereabouts(self, masks: Tensor, like: Tensor) -> Tensor:
        """The supports' mean mask, blurred and scaled to 1, for every query: `(B, Q, 1, h, w)`."""
        near = F.adaptive_avg_pool2d(masks.mean(1, keepdim=True), like.shape[-2:])
        radius = max(like.shape[-1] // 16, 1)
        for _ in range(2):
            near = F.avg_pool2d(near, 2 * radius + 1, 1, radius)
        near = near / near.amax((-2, -1), keepdim=True).clamp(min=1e-5)
        return near[:, None].expand(-1, like.shape[1], -1, -1, -1)

    def losses(self, answer: Tensor, odds: list[Tensor], masks: Tensor, name: str) -> dict[str, Tensor]:
        """Cross entropy and Dice of the pixels, balanced cross entropy of the cells; 255 in the masks is ignored."""
        truth, known = (masks == 1).float(), (masks != IGNORE).float()
        pixels = F.binary_cross_entropy_with_logits(answer, truth, known, pos_weight=answer.new_tensor(2.0))
        overlap = self.dice * (1 - soft_dice(answer.sigmoid() * known, truth)).mean()
        cells = 0.0
        for found in odds:
            inside, outside = (F.adaptive_avg_pool2d(part, found.shape[-2:]) for part in (truth, known - truth))
            cells = cells + balanced(found, inside, outside)
        return {name: pixels, f"{name}_dice": overlap, f"{name}_cells": self.cells * cells}


@ops.in_full_precision
def compare(support: Tensor, masks: Tensor, query: Tensor, temperature: Tensor, prior: Tensor) -> Tensor:
    """What every query cell resembles: keys `(B, S, C, h, w)`, masks `(B, S, H, W)`, keys `(B, Q, C, h, w)`.

    The density of a class at a query cell is the sum of exp(temperature * cosine) over the support cells, each with its
    share of the class.

    Returns:
        `(B, Q, 5, h, w)`: log odds of the organ's density against that of the rest, the log of either density, on the
        scale of a cosine, the cosine to the mean of either.
    """
    share = F.adaptive_avg_pool2d(masks, support.shape[-2:]).flatten(1)
    shares = torch.stack((share, 1 - share), 1)  # (B, 2, N)
    keys = F.normalize(support.transpose(1, 2).flatten(2), dim=1)  # (B, C, N)
    asked = F.normalize(query.transpose(1, 2).flatten(2), dim=1).transpose(1, 2)  # (B, QM, C)
    kernels = torch.bmm(temperature * asked, keys).exp()  # (B, QM, N)
    density = torch.bmm(kernels, (shares + SMALLEST).transpose(1, 2)).log()  # (B, QM, 2)
    amount = (shares.sum(-1, keepdim=True) + EMPTY).log().transpose(1, 2)  # (B, 1, 2)
    mean = F.normalize(torch.bmm(shares, keys.transpose(1, 2)), dim=2)  # (B, 2, C)
    odds = (density - (1 - prior) * amount) @ density.new_tensor([[1.0], [-1.0]])
    clues = torch.cat((odds, (density - amount) / temperature, torch.bmm(asked, mean.transpose(1, 2))), 2)
    return clues.transpose(1, 2).unflatten(2, (query.shape[1], *query.shape[-2:])).transpose(1, 2)


def soft_dice(probability: Tensor, truth: Tensor) -> Tensor:
    """Of every image: `(B, Q, H, W)`, `(B, Q, H, W)` -> `(B, Q)`."""
    overlap = (probability * truth).sum((-2, -1))
    return (2 * overlap + 1) / (probability.sum((-2, -1)) + truth.sum((-2, -1)) + 1)


def balanced(odds: Tensor, inside: Tensor, outside: Tensor) -> Tensor:
    """Cross entropy in which the organ and the rest count alike: `(B, Q, h, w)` and the shares of the cells."""
    hits = -(inside * F.logsigmoid(odds)).sum() / inside.sum().clamp(min=1)
    rest = -(outside * F.logsigmoid(-odds)).sum() / outside.sum().clamp(min=1)
    return (hits + rest) / 2


def _keys(channels: int, keys: int) -> nn.Conv2d:
    layer = nn.Conv2d(channels, keys, 1, bias=False)
    nn.init.orthogonal_(layer.weight)  # cosines stay, more or less, those of the encoder
    return layer


def _decoder(inputs: int, width: int, outputs: int) -> nn.Sequential:
    layers = []
    for i, o in ((inputs, width), (width, outputs)):
        layers += [nn.Conv2d(i, o, 3, padding=1, bias=False), nn.GroupNorm(8 if o % 8 == 0 else 1, o), nn.ReLU()]
    return nn.Sequential(*layers)
