"""ADNet 3D: Hansen et al., "Anomaly detection-inspired few-shot medical image segmentation through self-supervision
with supervoxels", Medical Image Analysis 2022 (arXiv 2203.02048).

ADNet on volumes: one prototype from a whole supervoxel (in tests: from all annotated slices of the organ), and a query
volume in one pass. Anomaly score, threshold and losses are ADNet's; described in models/spec/adnet.md.
"""

import torch.nn.functional as F
from torch import Tensor

from models.adnet import ADNet
from models.parts import ops


class ADNet3D(ADNet):
    """ADNet in 3D: masks meet features at FEATURE resolution, where ADNet 2D pools and aligns at that of the masks.

    A supervoxel that the sampling misses gives the zero prototype. Arguments as ADNet's; a 2D encoder sees the slices.
    If the encoder's cells are `centred`, masks and predictions keep to that: with the published resizing, made for
    cells that look at their first voxel, predictions of the small encoder lay up to 12 pixels beside the organ.
    """

    dims, default_encoder = 3, "resnext101_3d"
    recipe = {
        "train": dict(steps=50_000),
        "episode": dict(sampler="crops", elastic=0.0),
        "test": dict(pairing="volume"),
        "variants": {"CMR": {"train": dict(steps=15_000)}, "published": {"episode": dict(warp="published")}},
    }

    def pooling_masks(self, masks: Tensor, features: Tensor) -> Tensor:
        """Masks `(B, S, D, H, W)` at the size of the features `(B, S, C, D, h, w)`: voxel floor(i * in / out) of every
        axis for cell i [adnet 4.3], or for centred cells the share of a cell that is covered."""
        return F.interpolate(masks.float(), size=features.shape[3:], mode="area" if self.centred else "nearest")

    def upsampled_logits(self, probability: Tensor, size: tuple[int, ...]) -> Tensor:
        """Foreground probabilities `(B, Q, D, h, w)` of the cells -> logits `(B, Q, 2, D, H, W)`, trilinear."""
        return ops.upsampled_logits(probability, size, align_corners=not self.centred)

    @property
    def centred(self) -> bool:
        """Whether a cell of the encoder looks at the middle of its voxels, not at the first one."""
        return getattr(self.encoder, "centred", False)
