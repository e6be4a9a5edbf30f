"""VISA-FSS beyond what every method promises: continuity, its ramp, shots that stand for one."""

import cv2
import numpy as np
import pytest
import torch

from dataloaders.augmentation import sample
from models.parts.encoders import Images
from models.registration import Registration, roughness, warp
from models.visa import VISA, continuity_loss
from tests.models.stub import TinyEncoder
from tests.models.test_contract import episode
from util.episode import Episode


def build(**options) -> VISA:
    torch.manual_seed(0)
    return VISA(TinyEncoder(VISA.encoder_strides), **options)


def with_neighbours(given: Episode, *flags: float) -> Episode:
    return Episode(
        given.support_images, given.support_masks, given.query_images, given.query_masks, torch.tensor(flags)
    )


def logits(*masks: torch.Tensor) -> torch.Tensor:
    foreground = 120 * torch.stack(masks).float() - 60
    return torch.stack((torch.zeros_like(foreground), foreground), 1)[None]


def test_identical_masks_are_continuous_and_disjoint_ones_are_not():
    left = torch.zeros(8, 8)
    left[:, :3] = 1
    assert continuity_loss(logits(left, left, left)).item() == pytest.approx(0, abs=1e-6)
    assert continuity_loss(logits(left, left.flip(1))).item() == pytest.approx(1, abs=1e-6)
    assert continuity_loss(logits(left, left, left.flip(1))).item() == pytest.approx(0.5, abs=1e-6)  # of two pairs
    for certain in (1, 10):  # probabilities that are small, and that are zero
        assert continuity_loss(certain * logits(0 * left, 0 * left)).isfinite().all()


def test_only_neighbours_are_asked_to_be_continuous():
    method = build(ramp=1).train()
    given = episode(method, episodes=2, queries=4)
    assert "continuity" not in method(given).losses
    both, first = (method(with_neighbours(given, 1.0, last)).losses["continuity"] for last in (1.0, 0.0))
    expected = 0.5 * continuity_loss(method(given).logits)
    torch.testing.assert_close(both, expected.mean())
    torch.testing.assert_close(first, expected[0] / 2)
    single = episode(method, queries=1)
    assert "continuity" not in method(with_neighbours(single, 1.0)).losses


def test_the_weight_grows_every_quarter():
    method = build()
    weights = []
    for step in (0, 999, 1000, 1999, 2000, 3000, 3999, 4000):
        method.progress = step / 4000
        weights.append(method.continuity_factor())
    assert weights == pytest.approx([0, 0, 1 / 6, 1 / 6, 1 / 3, 1 / 2, 1 / 2, 1 / 2])
    assert build(ramp=1).continuity_factor() == 0.5


def test_five_equal_shots_are_one():
    method = build().eval()
    given = episode(method, queries=4, answers=False)
    five = Episode(
        given.support_images.repeat(1, 5, 1, 1, 1), given.support_masks.repeat(1, 5, 1, 1), given.query_images
    )
    torch.testing.assert_close(method(five).logits, method(given).logits, rtol=0, atol=1e-5)


def test_the_query_loss_is_that_of_the_paper_or_of_its_code():
    given = episode(build(), queries=4)
    paper, code = (build(background_weight=weight).train()(given) for weight in (1.0, 0.05))
    plain = torch.nn.functional.cross_entropy(paper.logits.flatten(0, 1), given.query_masks.flatten(0, 1))
    torch.testing.assert_close(paper.losses["query"], plain)
    weights = torch.tensor([0.05, 1.0])
    weighted = torch.nn.functional.cross_entropy(code.logits.flatten(0, 1), given.query_masks.flatten(0, 1), weights)
    torch.testing.assert_close(code.losses["query"], weighted)


def test_a_sampler_that_follows_the_displacement_warps_as_the_network_does():
    """Whatever the grid of the network, its displacement is in true pixels."""
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 1, 1, 32, 48, generator=generator)
    for align_corners in (True, False):
        network = Registration(Images(), align_corners=align_corners).eval()
        with torch.no_grad():
            warped = warp(source, network.flow(source, target), align_corners)[0, 0]
            displacement = network.displacement(source, target)[0]
        sampled = sample(source[0, 0].numpy(), displacement.numpy(), cv2.BORDER_CONSTANT)
        np.testing.assert_allclose(sampled, warped, atol=0.1)  # OpenCV has 32 steps between pixels
        assert np.corrcoef(sampled.ravel(), warped.ravel())[0, 1] > 0.999


def test_roughness_is_the_mean_of_both_axes():
    rows = torch.arange(6.0)[:, None].expand(6, 5)
    assert roughness(torch.stack((3 * rows, 0 * rows))[None]) == 9 / 4  # of two channels, of two axes
    assert roughness(torch.full((1, 2, 6, 5), 7.0)) == 0
