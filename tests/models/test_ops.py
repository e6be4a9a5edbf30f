"""The fast forms equal the plain ones they stand for."""

import pytest
import torch
import torch.nn.functional as F

from models.parts import ops
from models.parts.losses import pixel_nll, weighted_nll
from util.episode import IGNORE


@pytest.mark.parametrize("size", [(8, 8), (9, 13), (32, 20)])
@pytest.mark.parametrize("image", [(64, 64), (50, 70)])
def test_masked_average_equals_pooling_at_image_resolution(size, image):
    features = torch.randn(2, 3, 5, *size, dtype=torch.float64)
    masks = (torch.rand(2, 3, *image) > 0.6).double()
    large = F.interpolate(features.flatten(0, 1), size=image, mode="bilinear", align_corners=False)
    plain = (large.unflatten(0, (2, 3)) * masks[:, :, None]).sum((-2, -1)) / (masks.sum((-2, -1)) + 1e-5)[..., None]
    torch.testing.assert_close(ops.masked_average(features, masks), plain, rtol=1e-7, atol=1e-9)


def test_empty_mask_gives_the_zero_vector_and_a_finite_gradient():
    features = torch.randn(1, 1, 4, 8, 8, requires_grad=True)
    prototype = ops.masked_average(features, torch.zeros(1, 1, 32, 32))
    assert not prototype.any()
    ops.cosine_map(features, prototype).sum().backward()
    assert features.grad.isfinite().all()


def test_weighted_nll_is_torchs():
    logits = torch.randn(2, 3, 2, 16, 16).log_softmax(2)
    masks = torch.randint(0, 2, (2, 3, 16, 16))
    masks[0, 0, :4] = IGNORE
    expected = F.nll_loss(logits.flatten(0, 1), masks.flatten(0, 1), torch.tensor([0.1, 1.0]), ignore_index=255)
    torch.testing.assert_close(weighted_nll(logits, masks, 0.1), expected)


def test_pixel_nll_is_torchs_per_image():
    logits = torch.randn(2, 3, 2, 16, 16).log_softmax(2)
    masks = torch.randint(0, 2, (2, 3, 16, 16))
    losses = pixel_nll(logits, masks.float())
    for b in range(2):
        for s in range(3):
            torch.testing.assert_close(losses[b, s], F.nll_loss(logits[b, s][None], masks[b, s][None]))


def test_log_probabilities_are_clamped_and_normalised():
    logits = ops.log_probabilities(torch.tensor([0.0, 0.25, 1.0]).reshape(1, 1, 3))
    assert logits.isfinite().all()
    torch.testing.assert_close(logits.softmax(2)[0, 0, 1], torch.tensor([0.0, 0.25, 1.0]), rtol=0, atol=1e-6)
