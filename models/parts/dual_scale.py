"""What the Q-Net family (Q-Net, PAMI, RPT, GMRD) puts on its encoder: two scales of features, a threshold per image.

The encoder [gmrd 2] gives maps at strides 4 and 8 (layer3 and layer4 of the ResNet).

The head takes the mean of the deep map as it is, so the scale of that map must stand still. Batch norms that train on
the statistics of the two images hold it, as in the papers; the recipes say so, whatever the encoder prefers. With
frozen statistics nothing does: on EfficientNet-Lite0 the mean's norm grew from 19 to 90 within 40 steps of RPT, and t
ran to -100, where the clamped logarithms have no gradient; else it stays near 13, and t near -9. The recipes also name
the learning rate, to which the product of two linear layers is as sensitive.
"""

import torch
from torch import Tensor, nn

from models.parts.base import Features, reduction


class DualScale(nn.Module):
    """The two reductions and the threshold head; a method switches off what it gives no weight.

    Args:
        encoder: with two maps, shallow to deep.
        channels: width of both reduced maps.
        fine: reduce the shallow map (64 x 64 at image size 256).
        coarse: reduce the deep map (32 x 32).
    """

    def __init__(self, encoder: nn.Module, *, channels: int, fine: bool = True, coarse: bool = True) -> None:
        super().__init__()
        self.fine = reduction(encoder, 0, channels) if fine else None
        self.coarse = reduction(encoder, 1, channels) if coarse else None
        self.threshold = ThresholdHead(encoder.channels[1])
        for layer in (self.fine, self.coarse):
            if isinstance(layer, nn.Conv2d):  # drawn like every convolution of the papers' encoder
                nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, maps: Features) -> Features:
        """Encoder maps -> (fine `(N, C, h, w)`, coarse `(N, C, h / 2, w / 2)`, threshold `(N,)`), if switched on."""
        shallow, deep = maps
        reductions = ((self.fine, shallow), (self.coarse, deep))
        return (*(layer(encoded) for layer, encoded in reductions if layer is not None), self.threshold(deep))


class ThresholdHead(nn.Module):
    """Global average of the deepest map, then two linear layers without an activation between; always in float32."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.classifier = nn.Linear(channels, 1000)  # the ResNet's own classifier in the papers' code
        self.reduction = nn.Linear(1000, 1)

    def forward(self, deep: Tensor) -> Tensor:
        """`(N, C, h, w)` -> one threshold per image, `(N,)`."""
        with torch.autocast(deep.device.type, enabled=False):
            return self.reduction(self.classifier(deep.float().mean((-2, -1))))[:, 0]
