"""What the Q-Net family (Q-Net, PAMI, RPT, GMRD) puts on its encoder: two scales of features, a threshold per image.

The encoder [gmrd 2] gives maps at strides 4 and 8 (layer3 and layer4 of the ResNet).

The published head takes the mean of the deep map as it is, so its threshold t moves by the learning rate times the
mean's square norm, some hundred times as fast as ADNet's single number. Batch norms that train on the two images of an
episode hold it, but make their mean nearly constant: in evaluation, where each image has its own, t is another (-8.99
against -11.95). With frozen norms the steady head is taken: its input has length 1, and it starts at ADNet's t.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from models.parts import ops
from models.parts.base import Features, reduction
from models.parts.encoders import ENCODERS
from util.errors import UserError

START = -10.0  # of a steady threshold, as ADNet's
# `train.*` of the methods on the small encoder: their papers' is for ResNet-101, whose norms move
ON_LITE0 = ENCODERS["efficientnet_lite0"].training


class DualScale(nn.Module):
    """The two reductions and the threshold head, and how the predictions of both scales become one.

    Args:
        encoder: with two maps, shallow to deep.
        channels: width of both reduced maps.
        weights: of the predictions from the shallow map (64 x 64 at image size 256) and the deep one (32 x 32). The map
            of weight zero is not reduced, unless `both` are asked for.
        threshold_head: "published" or "steady".

    Raises:
        UserError: no such head.
    """

    def __init__(
        self,
        encoder: nn.Module,
        channels: int,
        weights: tuple[float, float] = (1.0, 0.0),
        *,
        both: bool = False,
        threshold_head: str = "published",
    ) -> None:
        super().__init__()
        used = [position for position, weight in enumerate(weights) if weight > 0 or both]
        self.weights = [weights[position] / sum(weights) for position in used]
        self.fine = reduction(encoder, 0, channels) if 0 in used else None
        self.coarse = reduction(encoder, 1, channels) if 1 in used else None
        self.threshold = ThresholdHead(encoder.channels[1], threshold_head)
        for layer in (self.fine, self.coarse):
            if isinstance(layer, nn.Conv2d):  # drawn like every convolution of the papers' encoder
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Features) -> Features:
        """Encoder maps -> (fine `(N, C, h, w)`, coarse `(N, C, h / 2, w / 2)`, threshold `(N,)`), those in use."""
        shallow, deep = maps
        reductions = ((self.fine, shallow), (self.coarse, deep))
        return (*(layer(encoded) for layer, encoded in reductions if layer is not None), self.threshold(deep))

    def predict(self, maps: Features, prototypes: Sequence[Tensor], thresholds: Tensor) -> list[Tensor]:
        """Foreground probability at every scale, as `ops.foreground_probability` has it."""
        return [ops.foreground_probability(m, p, thresholds) for m, p in zip(maps, prototypes, strict=True)]

    def fuse(self, values: Sequence[Tensor]) -> Tensor:
        """Weighted mean over the scales."""
        return sum(weight * value for weight, value in zip(self.weights, values, strict=True))

    def fused(self, probabilities: Sequence[Tensor], size: tuple[int, int]) -> Tensor:
        """Probabilities `(B, Q, h, w)` of every scale, upsampled, then fused: `(B, Q, H, W)`."""
        return self.fuse([ops.resize(probability, size, align_corners=True) for probability in probabilities])


class ThresholdHead(nn.Module):
    """Global average of the deepest map, then two linear layers without an activation between; always in float32.

    The steady one scales the average to length 1 and starts near START.
    """

    def __init__(self, channels: int, kind: str = "published") -> None:
        super().__init__()
        if kind not in ("published", "steady"):
            raise UserError(f"model.threshold_head={kind}: choose published or steady")
        self.steady = kind == "steady"
        self.classifier = nn.Linear(channels, 1000)  # the ResNet's own classifier in the papers' code
        self.reduction = nn.Linear(1000, 1)
        if self.steady:
            nn.init.constant_(self.reduction.bias, START)

    def forward(self, deep: Tensor) -> Tensor:
        """`(N, C, h, w)` -> one threshold per image, `(N,)`."""
        with ops.full_precision(deep):
            average = deep.float().mean((-2, -1))
            average = F.normalize(average, dim=1) if self.steady else average
            return self.reduction(self.classifier(average))[:, 0]
