"""ADNet 3D puts masks and predictions where the encoder's cells look."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.adnet3d import ADNet3D


class Averages(nn.Module):
    """A cell is the mean of its 16 x 16 pixels, and of their complement."""

    dims, channels, strides = 3, (2,), (16,)

    def __init__(self, centred: bool) -> None:
        super().__init__()
        self.centred = centred

    def forward(self, volumes: Tensor) -> tuple[Tensor, ...]:
        return (F.avg_pool3d(torch.cat((volumes, 1 - volumes), 1), (1, 16, 16)),)


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("first", [16, 176])
def test_predictions_lie_on_what_they_segment(first, centred):
    """A square segments itself; resized as published it would slide towards the nearer border by a third of a cell."""
    square = torch.zeros(1, 1, 3, 256, 256)
    square[..., first : first + 48, first : first + 48] = 1
    method = ADNet3D(Averages(centred), channels=2).eval()
    with torch.no_grad():
        features = [maps[None] for maps in method.encode(square)]
        found = method.match(features, square, features).masks[0, 0].float()
    rows = (found.sum((0, 2)) * torch.arange(256)).sum() / found.sum()
    aside = abs(float(rows) - (first + 23.5))
    assert aside < 0.6 if centred else aside > 4
    assert found.sum() / square.sum() == pytest.approx(1, abs=0.15)


def test_prototypes_weigh_centred_cells_by_what_is_covered():
    method = ADNet3D(Averages(centred=True), channels=2)
    masks = torch.zeros(1, 1, 2, 32, 32)
    masks[:, :, 0, :8, :16] = 1
    shares = method.pooling_masks(masks, torch.zeros(1, 1, 2, 2, 2, 2))
    torch.testing.assert_close(shares[0, 0], torch.tensor([[[0.5, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]]))
