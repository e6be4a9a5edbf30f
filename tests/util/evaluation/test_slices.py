"""Slices meet their supports as the task says, and the walk carries predictions outward."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from util.episode import Output
from util.evaluation.slices import SliceInference, anchored, best_borders
from util.evaluation.tasks import Group, Task, evaluate, score

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Painted:
    """A scan of 4 x 4 slices, each of one grey value; the organ is the left half."""

    image: np.ndarray

    def organ(self, identifier: int) -> np.ndarray:
        mask = np.zeros(self.image.shape, dtype=bool)
        mask[:, :, :2] = identifier > 0
        return mask


class Copies(nn.Module):
    """Answers with the support's mask where the grey values are less than 1.5 apart, else with nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.supports: list[tuple[float, ...]] = []

    def encode(self, images):
        return (images,)

    def match(self, support_features, support_masks, query_features, query_masks=None):
        given, asked = support_features[0][0, :, 0, 0, 0], query_features[0][0, :, 0, 0, 0]
        self.supports.append(tuple(given.tolist()))
        near = ((asked[:, None] - given).abs() < 1.5).float()[..., None, None]
        mask = (near * support_masks[0]).amax(1)
        return Output(torch.stack((torch.full_like(mask, 0.5), mask), 1)[None])


def scan(*greys: float) -> Painted:
    return Painted(np.tile(np.array(greys, dtype=np.float32)[:, None, None], (1, 4, 4)))


def segmented(scans, groups, **options) -> tuple[list[int], Copies]:
    """Slices of scan 1 that got a mask, and the method that was asked."""
    method = Copies()
    task = Task("liver", 1, (0,), 1, groups, (), **options)
    volume = SliceInference(method, scans.__getitem__, CPU, batch_size=2).probabilities(task)
    return np.flatnonzero((volume > 0.5).any((1, 2))).tolist(), method


def test_every_group_is_segmented_with_its_own_shots():
    scans = {0: scan(0, 10, 20), 1: scan(0, 10, 20, 30, 20)}
    groups = (Group(((0, 0),), (0, 1)), Group(((0, 1), (0, 2)), (2, 3, 4)))
    found, method = segmented(scans, groups)
    assert found == [0, 2, 4] and set(method.supports) == {(0.0,), (10.0, 20.0)}


def test_the_walk_reaches_slices_the_support_is_far_from():
    scans = {0: scan(5), 1: scan(9, 8, 7, 6, 5, 4, 3)}
    whole = tuple(range(7))
    assert segmented(scans, (Group(((0, 0),), whole),))[0] == [3, 4, 5]
    found, method = segmented(scans, (Group(((0, 0),), whole, pivot=4, anchored=False),))
    assert found == list(whole)
    assert method.supports == [(5.0,), (5.0,), (4.0,), (5.0,), (6.0,), (7.0,), (8.0,)]


def test_a_published_walk_that_lost_the_organ_stays_lost_and_ours_asks_the_annotated_slice_again():
    scans = {0: scan(5), 1: scan(5, 5, 50, 5, 5)}
    whole = (0, 1, 2, 3, 4)
    assert segmented(scans, (Group(((0, 0),), whole, pivot=0, anchored=False),))[0] == [0, 1]
    assert segmented(scans, (Group(((0, 0),), whole, pivot=0),))[0] == [0, 1, 3, 4]


def test_an_anchored_walk_does_not_drift_to_what_the_annotated_slice_denies():
    scans = {0: scan(5), 1: scan(5, 6, 7, 8, 9)}
    whole = (0, 1, 2, 3, 4)
    assert segmented(scans, (Group(((0, 0),), whole, pivot=0, anchored=False),))[0] == [0, 1, 2, 3, 4]
    assert segmented(scans, (Group(((0, 0),), whole, pivot=0),))[0] == [0, 1]


def test_two_answers_that_agree_count_together():
    carried, annotated = np.full((2, 10), 0.9), np.full((2, 10), 0.6)
    carried[0, :3] = annotated[0, 6:8] = 0.1  # masks of 17 and 18 of 20 pixels: Dice 0.86
    np.testing.assert_allclose(anchored(carried, annotated), (carried + annotated) / 2)
    carried[:, :6] = 0.1  # 8 and 18: Dice 0.46
    np.testing.assert_array_equal(anchored(carried, annotated), annotated)
    np.testing.assert_array_equal(anchored(0 * carried, annotated), annotated)
    np.testing.assert_array_equal(anchored(carried, 0 * annotated), 0 * annotated)


def test_shots_may_come_from_several_scans():
    scans = {0: scan(0), 7: scan(20), 1: scan(0, 10, 20)}
    method = Copies()
    task = Task("liver", 1, (0, 7), 1, (Group(((0, 0), (7, 0)), (0, 1, 2)),), ())
    volume = SliceInference(method, scans.__getitem__, CPU).probabilities(task)
    assert (volume > 0.5).any((1, 2)).tolist() == [True, False, True]


@pytest.mark.parametrize("seed", range(20))
def test_best_borders_are_the_best_of_all(seed):
    generator = np.random.default_rng(seed)
    count, depth = generator.integers(2, 5), generator.integers(1, 7)
    likeness = generator.normal(size=(count, depth))

    def total(borders):
        return sum(likeness[k, a:b].sum() for k, (a, b) in enumerate(itertools.pairwise(borders)))

    cuts = np.stack(np.meshgrid(*[np.arange(depth + 1)] * (count - 1), indexing="ij"), -1).reshape(-1, count - 1)
    every = [[0, *cut, depth] for cut in cuts.tolist() if sorted(cut) == cut]
    borders = best_borders(likeness)
    assert borders[0] == 0 and borders[-1] == depth and borders == sorted(borders)
    assert total(borders) == pytest.approx(max(map(total, every)))


class Turned(Copies):
    """Features are unit vectors whose angle is the grey value in degrees: what looks alike is alike."""

    def encode(self, images):
        angle = torch.deg2rad(images.mean((1, 2, 3)))
        return (images, torch.stack((angle.cos(), angle.sin()), 1))


def test_slices_find_the_support_they_look_like():
    scans = {0: scan(0, 90, 180), 1: scan(30, 0, 30, 30, 90, 180)}
    groups = tuple(Group(((0, z),), (0,), pivot=0) for z in range(3))
    task = Task("liver", 1, (0,), 1, groups, (), similar=True)
    found = SliceInference(Turned(), scans.__getitem__, CPU)._grouped_by_similarity(task)
    assert [group.query_slices for group in found] == [(0, 1, 2, 3), (4,), (5,)]
    assert [group.pivot for group in found] == [1, 4, 5]


class Fixed:
    """A segmenter that always answers the same."""

    def __init__(self, value: float) -> None:
        self.value = value

    def keep(self, scans) -> None:
        pass

    def probabilities(self, task) -> np.ndarray:
        return np.full((2, 2, 2), self.value + 0.1 * task.supports[0], dtype=np.float32)


class Everywhere:
    """A scan whose organ fills it."""

    spacing = (7.7, 1.5, 1.5)

    def organ(self, identifier: int) -> np.ndarray:
        return np.ones((2, 2, 2), dtype=bool)


@pytest.mark.parametrize(("values", "voxels"), [((0.2, 0.9), 8), ((0.2, 0.7), 0)])
def test_an_ensemble_averages_probabilities(values, voxels):
    task = Task("liver", 1, (0,), 1, (Group(((0, 0),), (0, 1)),), (0, 1))
    (result,) = evaluate([Fixed(value) for value in values], [task], lambda _: Everywhere())
    assert result.prediction.sum() == voxels and result.row["support"] == "0"


def test_supports_are_pooled_organ_by_organ():
    tasks = [Task(organ, 1, (s,), 9, (Group(((s, 0),), (0, 1)),), (0,)) for organ in ("a", "b") for s in (2, 4)]
    results = list(evaluate([Fixed(0.15)], tasks, lambda _: Everywhere(), pool=True))
    # 0.35 and 0.55: their mean is below one half
    assert [(r.row["organ"], r.row["support"], r.prediction.any()) for r in results] == [
        ("a", "2+4", False),
        ("b", "2+4", False),
    ]


def test_scans_are_forgotten_when_told():
    read = []
    segmenter = SliceInference(Copies(), lambda number: read.append(number) or scan(number), CPU)
    for number in (0, 1, 1):
        segmenter.encoded(number)
    segmenter.keep(frozenset({1}))
    for number in (1, 0):
        segmenter.encoded(number)
    assert read == [0, 1, 0]


@pytest.mark.parametrize("segmented", [2, 1])
def test_a_volume_is_scored_if_all_of_it_was_segmented(segmented):
    truth = np.ones((2, 2, 2), bool)
    task = Task("liver", 1, (0,), 1, (Group(((0, 0),), tuple(range(segmented))),), (0,))
    row = score(task, truth, truth, (1, 1, 1), [(truth, (0,))])
    assert row["dice"] == 1 and row["slices"] == 1
    assert np.isnan(row["dice_volume"]) == (segmented < 2)
