"""PANet is two prototypes, a cosine and a cross entropy."""

import pytest
import torch
import torch.nn.functional as F

from models.panet import PANet
from tests.models.stub import TinyEncoder

SIDE = 24


@pytest.fixture
def given() -> tuple[torch.Tensor, ...]:
    """Features at image resolution with a direction for each class, and the organ: a square in one corner."""
    masks = torch.zeros(1, 1, SIDE, SIDE)
    masks[..., :10, :8] = 1
    noise = 0.1 * torch.randn(1, 1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    features = noise + torch.stack((masks, 1 - masks, masks, 1 - masks), 2)
    return features, masks


def run(given, answers: bool = True, **options):
    features, masks = given
    method = PANet(TinyEncoder((8,)), **options).train(answers)
    return method.match((features,), masks, (features,), masks.long() if answers else None)


def test_a_scan_segments_itself(given):
    assert torch.equal(run(given, answers=False).masks, given[1] == 1)


def test_logits_are_scaled_cosines(given):
    logits, tenfold = (run(given, answers=False, scale=scale).logits for scale in (1.0, 10.0))
    assert 0.9 < logits.amax() <= 1 + 1e-6
    torch.testing.assert_close(tenfold, 10 * logits)


def test_losses_are_plain_cross_entropies(given):
    """The same image on both sides: the alignment repeats the query's task, as the prediction is the truth."""
    output, half = run(given, scale=1.0), run(given, scale=1.0, align_weight=0.5)
    expected = F.cross_entropy(output.logits[:, 0], given[1][:, 0].long())
    torch.testing.assert_close(output.losses["query"], expected)
    torch.testing.assert_close(output.losses["align"], expected)
    torch.testing.assert_close(half.losses["align"], expected / 2)
