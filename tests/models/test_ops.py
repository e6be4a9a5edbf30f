"""The fast forms equal the plain ones they stand for."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage

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


def test_nothing_is_certain():
    """Both classes keep a probability of EPSILON, so that no gradient and no other loss is infinite."""
    logits = ops.log_probabilities(torch.tensor([-1.0, 0.0, 1.0, 2.0]).reshape(1, 1, 4))
    bounds = torch.tensor([ops.EPSILON, 1 - ops.EPSILON]).log()
    torch.testing.assert_close(torch.stack(logits.aminmax()), bounds, rtol=0, atol=0)


def test_a_batch_of_unknown_pixels_costs_nothing():
    logits = torch.randn(1, 1, 2, 4, 4).log_softmax(2)
    assert weighted_nll(logits, torch.full((1, 1, 4, 4), IGNORE), 0.1) == 0


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_erosion_and_dilation_are_those_of_squares(radius):
    masks = torch.rand(2, 1, 15, 17, generator=torch.Generator().manual_seed(radius)) < 0.85
    square = np.ones((2 * radius + 1, 2 * radius + 1))
    for image, eroded, dilated in zip(
        masks, ops.erode(masks.float(), radius), ops.dilate(masks.float(), radius), strict=True
    ):
        np.testing.assert_array_equal(eroded[0], ndimage.binary_erosion(image[0], square, border_value=1))
        np.testing.assert_array_equal(dilated[0], ndimage.binary_dilation(image[0], square))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_sums_over_pixels_keep_full_precision_under_autocast(precision):
    features, masks = torch.randn(1, 1, 4, 8, 8).to(precision), torch.ones(1, 1, 320, 320)
    with torch.autocast("cpu", precision):
        found = ops.masked_average(features, masks)
    torch.testing.assert_close(found, ops.masked_average(features.float(), masks), rtol=0, atol=0)
