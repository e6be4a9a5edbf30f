"""Regions of a support, and what PAMI and RPT promise beyond the contract of every method."""

import numpy as np
import pytest
import torch

from models.pami import PAMI
from models.parts.dual_scale import ThresholdHead
from models.parts.regions import RegionalPrototypes, foreground_cells, region_means, region_weights, voronoi_regions
from models.parts.transformer import MultiHeadAttention
from models.rpt import RPT
from tests.models.stub import TinyEncoder
from util.episode import Episode
from util.errors import UserError


def brute_force(cells: np.ndarray, first: int, count: int) -> np.ndarray:
    """Farthest point sampling point by point, then the nearest centre of every point."""
    points = np.argwhere(cells)
    centres = [next(i for i, (y, x) in enumerate(points) if y * cells.shape[1] + x == first)]
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    while len(centres) < count:
        centres.append(int(distances[:, centres].min(1).argmax()))
    regions = np.full(cells.shape, -1)
    regions[cells] = distances[:, centres].argmin(1)
    return regions


def test_regions_equal_the_definition():
    cells = torch.rand(2, 3, 11, 14, generator=torch.Generator().manual_seed(0)) < 0.4
    first = cells.flatten(2).int().argmax(2)
    found = voronoi_regions(cells, first, 9)
    for index in np.ndindex(2, 3):
        np.testing.assert_array_equal(found[index], brute_force(cells[index].numpy(), first[index].item(), 9))


@pytest.mark.parametrize("first_centre", ["reset", "published"])
@pytest.mark.parametrize("radius", [0, 5, 40])
def test_no_region_is_empty(first_centre, radius):
    y, x = torch.meshgrid(torch.arange(96), torch.arange(80), indexing="ij")
    mask = ((y - 60) ** 2 + (x - 40) ** 2 < radius**2).float()[None, None]
    regions = RegionalPrototypes(20, first_centre).region_map(mask, (24, 20))
    assert regions.flatten().unique().tolist() == list(range(-1, 20))
    cells = foreground_cells(mask, (24, 20), 20)
    torch.testing.assert_close(regions >= 0, cells)
    assert cells[0, 0, 0].all() == (radius < 40)  # too few: the first cells join, here the first row


def test_as_many_cells_as_regions_are_enough():
    mask = torch.zeros(1, 1, 6, 6)
    mask[..., 3:, 2:4] = 1
    torch.testing.assert_close(foreground_cells(mask, (6, 6), 6), mask > 0)
    assert foreground_cells(mask, (6, 6), 7).sum() == 13


@pytest.mark.parametrize("cells", [4, 16, 100])
def test_the_first_centre_has_as_many_cells_before_it_as_was_drawn(cells):
    """With a region for every cell each centre is alone in its region."""
    regional = RegionalPrototypes(cells)
    side = int(cells**0.5)
    regions = regional.region_map(torch.ones(1, 1, side, side), (side, side))
    assert regions.flatten().tolist().index(0) == int(cells * regional.fixed_draw)


@pytest.mark.parametrize("first_centre", ["reset", "published"])
@pytest.mark.parametrize("cells", [0, 1, 4, 9, 12])
def test_small_organs_may_repeat_their_own_cells(cells, first_centre):
    """Each cell is a region; with fewer cells than regions they stand several times, none more than once too often."""
    features = torch.arange(1.0, 37.0).view(1, 1, 1, 6, 6)
    mask = torch.zeros(1, 1, 6, 6)
    mask.flatten()[20 : 20 + cells] = 1
    means = RegionalPrototypes(9, first_centre, "repeat")(features, mask)
    counts = means.flatten().int().bincount(minlength=37)
    if cells <= 9:
        expected = range(21, 21 + cells) if cells else [0]  # without a cell: zeros
        assert set(counts.nonzero().flatten().tolist()) == set(expected)
        assert counts.sum() == 9 and counts[counts > 0].max() - counts[counts > 0].min() <= 1
    else:
        torch.testing.assert_close(means, RegionalPrototypes(9, first_centre)(features, mask))


def test_means_are_over_the_cells_of_a_region():
    features, regions = torch.arange(8.0).view(1, 1, 2, 2, 2), torch.tensor([[[[0, 2], [-1, 2]]]])
    means = region_means(features, regions, 3)
    torch.testing.assert_close(means, torch.tensor([[[[0.0, 4.0], [0.0, 0.0], [2.0, 6.0]]]]))


@pytest.mark.parametrize(
    ("scores", "kept"),
    [
        ((1.0, 1.9, 4.0), (True, True, True)),  # the bound is floor(1.65)
        ((-3.0, 5.0, 6.0), (False, True, True)),  # floor(-0.17) = -1
        ((1.0, 2.0, 6.0), (False, True, True)),  # floor(2.0)
        ((2.0, 2.0, 2.0), (True, True, True)),  # what equals the bound stays
    ],
)
def test_regions_below_the_whole_number_under_the_bound_weigh_nothing(scores, kept):
    scores, kept = torch.tensor(scores)[:, None], torch.tensor(kept)[:, None]
    expected = scores.masked_fill(~kept, float("-inf")).softmax(0)
    torch.testing.assert_close(region_weights(scores), expected)


def test_more_regions_than_cells_are_refused():
    with pytest.raises(UserError, match=r"model\.regions=100"):
        RegionalPrototypes(100).region_map(torch.ones(1, 1, 36, 36), (9, 9))


def test_an_unknown_first_centre_is_refused():
    with pytest.raises(UserError, match="reset, published"):
        RegionalPrototypes(4, "random")
    with pytest.raises(UserError, match=r"model\.small_organs=none"):
        RegionalPrototypes(4, small_organs="none")


VARIANTS = {
    "rpt": lambda **options: RPT(TinyEncoder((4, 8)), regions=20, channels=16, **options),
    "pami": lambda **options: PAMI(TinyEncoder((4, 8)), regions=20, channels=16, **options),
    "pami, assembled scales": lambda **options: PAMI(
        TinyEncoder((4, 8)), regions=20, channels=16, scale_weights=(0.7, 0.3), assembly=0.5, **options
    ),
}


@pytest.fixture(params=VARIANTS)
def build(request):
    def make(**options):
        torch.manual_seed(0)
        return VARIANTS[request.param](**options).eval()

    return make


def episode(seed: int, *, shots: int = 1, queries: int = 1, height: int = 52, width: int = 68) -> Episode:
    """An image size that no stride divides into a square."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(1, shots + queries, height, width)
    masks[..., 10 + seed : 35, 12 : 50 - seed] = 1
    images = 2 * masks[:, :, None] + torch.randn(1, shots + queries, 1, height, width, generator=generator)
    return Episode(images[:, :shots], masks[:, :shots], images[:, shots:], masks[:, shots:].long())


def test_the_default_first_centre_forgets_earlier_calls(build):
    method = build()
    first = method(episode(0)).logits
    method(episode(1))
    torch.testing.assert_close(method(episode(0)).logits, first, rtol=0, atol=0)


def test_the_published_first_centre_depends_on_the_order_of_calls(build):
    method = build(first_centre="published")
    first = method(episode(0)).logits
    assert not torch.equal(method(episode(0)).logits, first)
    torch.testing.assert_close(build(first_centre="published")(episode(0)).logits, first, rtol=0, atol=0)


def test_published_pami_draws_twice_a_forward():
    method = PAMI(TinyEncoder((4, 8)), regions=20, channels=16, first_centre="published").eval()
    method(episode(0))
    single = RegionalPrototypes(20, "published")
    for size in ((13, 17), (6, 8)):
        single.region_map(episode(0).support_masks, size)
    assert method.regions.generator.randint(2**30) == single.generator.randint(2**30)


def test_one_shot_twice_is_one_shot(build):
    method, given = build(), episode(0)
    twice = Episode(
        given.support_images.repeat(1, 2, 1, 1, 1), given.support_masks.repeat(1, 2, 1, 1), given.query_images
    )
    torch.testing.assert_close(method(twice).logits, method(given).logits, rtol=1e-4, atol=1e-5)


def test_losses_of_a_batch_are_the_mean_of_its_episodes(build):
    method = build(dropout=0.0)
    given = [episode(seed, shots=2, queries=3) for seed in (1, 4)]
    for part in (method.dual_scale, method.regions, method.block):
        part.train()  # the encoder's batch statistics would join the episodes
    method.training = True
    together = method(Episode.stack(given)).losses
    alone = [method(single).losses for single in given]
    assert "align" in together
    for name, loss in together.items():
        torch.testing.assert_close(loss, (alone[0][name] + alone[1][name]) / 2, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -1.0), (1.0,)])
def test_impossible_scale_weights_are_refused(weights):
    with pytest.raises(UserError, match="scale_weights"):
        PAMI(TinyEncoder((4, 8)), scale_weights=weights)


def test_attention_drops_weights_in_training_alone():
    torch.manual_seed(0)
    attention, mixed = MultiHeadAttention(8, heads=2, dropout=0.5), []
    attention.output.register_forward_pre_hook(lambda _, given: mixed.append(given[0]))
    tokens = torch.randn(1, 5, 8)
    for training in (True, True, False, False):
        attention.train(training)(tokens, attention.project(tokens, tokens))
    assert not torch.equal(mixed[0], mixed[1])
    torch.testing.assert_close(mixed[2], mixed[3], rtol=0, atol=0)


def test_a_threshold_is_that_of_the_mean_of_its_map():
    head, deep = ThresholdHead(6), torch.randn(3, 6, 4, 5)
    torch.testing.assert_close(head(deep), head(deep.mean((-2, -1), keepdim=True)))


def test_a_steady_threshold_starts_at_adnets_and_knows_no_scale():
    torch.manual_seed(0)
    head, deep = ThresholdHead(192, "steady"), torch.rand(3, 192, 4, 5)
    torch.testing.assert_close(head(deep), head(100 * deep))
    torch.testing.assert_close(head(deep), torch.full((3,), -10.0), rtol=0.1, atol=0)
    head(deep).sum().backward()
    step = sum(p.grad.square().sum() for p in head.parameters()).sqrt() / 3
    assert step < 5  # ADNet's single number: 1; the published head on such a map: 100
    with pytest.raises(UserError, match="published or steady"):
        ThresholdHead(6, "fixed")


def test_only_the_ratio_of_scale_weights_counts():
    answers = [
        VARIANTS["pami"](scale_weights=weights).dual_scale.fuse([torch.tensor(1.0), torch.tensor(3.0)])
        for weights in ((2.0, 2.0), (0.5, 0.5))
    ]
    assert answers == [2.0, 2.0]
