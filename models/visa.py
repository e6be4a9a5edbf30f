"""VISA-FSS: Mozafari et al., "VISA-FSS: A Volume-Informed Self Supervised Approach for Few-Shot 3D Segmentation",
MICCAI 2023.

ALPNet, told that slices belong to a volume. Half of its tasks are realistic: the query is a neighbouring slice, its
label the superpixel carried there by registration. A second, short stage asks for all neighbours of a slice at once and
wants their predictions to change little from one to the next. In testing a prediction becomes the support of the next
slice (test.pairing=propagate). Described in models/spec/visa.md.
"""

import torch
from torch import Tensor, nn

from models.alpnet import ALPNet
from models.parts import ops
from util.bookkeeping import Bookkeeping
from util.episode import Episode, Output

STAGE_1 = dict(
    sampler="neighbouring", realistic=0.5, reach=3, queries="one", carry="chained", min_size=1, augment="both"
)
STAGE_2 = dict(realistic=1.0, reach=2, queries="all")
SECOND = dict(steps=4000, learning_rate=1e-5, start="newest")


class VISA(ALPNet):
    """ALPNet with the loss of continuity, which speaks if the queries are neighbouring slices in order.

    Args:
        encoder: any 2D encoder; its deepest map is used.
        background_weight: weight of background pixels in the query loss; the paper's is unweighted, its code has 0.05.
        continuity_weight: factor of the loss of continuity (the paper's lambda).
        ramp: the factor grows from 0 in so many equal steps over the training; 1 = constant.
        alpnet: everything else is ALPNet's.
    """

    recipe = {
        "train": dict(steps=100_000, decay=0.98),
        "scans": dict(segments="superpixels"),
        "episode": STAGE_1,
        "test": dict(pairing="propagate"),
        "variants": {
            "CT": {"scans": dict(normalise="training")},
            "stage 2": {"train": SECOND, "episode": STAGE_2},
            # what the published scripts do [visa 11]; they never draw a realistic task in stage 1 [visa V1]
            "published": {
                "episode": dict(realistic=0.0, carry="direct"),
                "model": dict(background_weight=0.05, ramp=1),
                "variants": {
                    "stage 2": {"episode": dict(realistic=0.5)},
                    "CT": {"scans": dict(normalise="published")},
                },
            },
        },
    }
    published = Bookkeeping(part_rule="unclamped", fold_order="circular", recorder="alpnet", lost_labels=(2,))

    def __init__(
        self,
        encoder: nn.Module,
        *,
        background_weight: float = 1.0,
        continuity_weight: float = 0.5,
        ramp: int = 4,
        **alpnet,
    ) -> None:
        super().__init__(encoder, background_weight=background_weight, **alpnet)
        self.continuity_weight, self.ramp = continuity_weight, ramp

    def forward(self, episode: Episode) -> Output:
        """ALPNet's answer, and the loss of continuity for episodes whose queries are neighbours."""
        output = super().forward(episode)
        if episode.query_masks is None or episode.neighbours is None or episode.query_images.shape[1] < 2:
            return output
        loss = (continuity_loss(output.logits) * episode.neighbours).mean()
        return Output(output.logits, output.losses | {"continuity": self.continuity_factor() * loss})

    def continuity_factor(self) -> float:
        """`ramp` values from 0 to `continuity_weight`, each for an equal stretch of the training ([visa 7.3]:
        every 1000 of 4000 steps)."""
        if self.ramp == 1:
            return self.continuity_weight
        return self.continuity_weight * min(int(self.progress * self.ramp) / (self.ramp - 1), 1.0)


@ops.in_full_precision
def continuity_loss(logits: Tensor) -> Tensor:
    """L_2.5D: one minus the mean Dice of the foreground probabilities of adjacent queries, `(B, Q, 2, *)` -> `(B,)`.

    Q queries make Q - 1 pairs. No epsilon, and no squares in the denominator, unlike the V-Net Dice [visa 7.3].
    """
    foreground = logits.softmax(2)[:, :, 1].flatten(2)
    overlap = (foreground[:, 1:] * foreground[:, :-1]).sum(-1)
    total = foreground.sum(-1)
    pairs = (total[:, 1:] + total[:, :-1]).clamp(min=torch.finfo(total.dtype).tiny)
    return 1 - (2 * overlap / pairs).mean(1)
