"""Supervoxels that vote: what they repair, what they leave alone, and how often a scan is cut."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import ndimage

from supervoxels import partitions
from util.evaluation.metrics import METRICS, VOTED, overlap
from util.evaluation.tasks import Group, Task, evaluate
from util.evaluation.voting import SIZES, Pieces, SupervoxelVoter, stretched, vote, without_strays

SHAPE, SPACING = (12, 96, 96), (6.0, 2.0, 2.0)
ALL = list(range(SHAPE[0]))


@dataclass
class Drawn:
    """A scan: a noisy image of one organ, and where it is."""

    image: np.ndarray
    truth: np.ndarray
    spacing: tuple[float, float, float] = SPACING

    def organ(self, identifier: int) -> np.ndarray:
        return self.truth


class Says:
    """A segmenter with one answer for each support."""

    def __init__(self, **answers: np.ndarray) -> None:
        self.answers = answers

    def probabilities(self, task: Task) -> np.ndarray:
        return self.answers[f"support{task.supports[0]}"]

    def keep(self, scans: frozenset[int]) -> None:
        pass


def distance(centre: tuple[float, float, float], radii: tuple[float, float, float]) -> np.ndarray:
    """1 on the surface of an ellipsoid given in mm."""
    grid = np.stack(np.meshgrid(*(np.arange(n) * mm for n, mm in zip(SHAPE, SPACING, strict=True)), indexing="ij"), -1)
    return np.sqrt((((grid - centre) / radii) ** 2).sum(-1))


def drawn(truth: np.ndarray, seed: int = 0, noise: float = 1.0) -> Drawn:
    noise = np.random.default_rng(seed).normal(0, noise, SHAPE)
    return Drawn((truth + ndimage.gaussian_filter(noise, (0, 1, 1))).astype(np.float32), truth)


def coarse(truth: np.ndarray, cell: int = 16) -> np.ndarray:
    """What a network with cells of so many pixels says: blurred, and wrong in a corner."""
    blurred = ndimage.gaussian_filter(truth.astype(np.float32), (0, cell / 2, cell / 2))
    said = 0.1 + 0.8 * blurred / blurred.max()
    said[:2, :12, :12] = 0.75
    return said.astype(np.float32)


def voted(scan: Drawn, probability: np.ndarray) -> np.ndarray:
    """The supervoxels' answer if the scan itself is the support, annotated on three slices."""
    voter = SupervoxelVoter(lambda number: scan, partitions)
    return voter.vote(probability, [task(1)]) > 0.5


def task(support: int, slices: list[int] = ALL) -> Task:
    return Task("organ", 1, (support,), 0, (Group(tuple((support, z) for z in (4, 6, 8)), tuple(slices)),), tuple(ALL))


ELLIPSOID = distance((36, 100, 90), (24, 40, 34)) <= 1
RING = (distance((36, 96, 96), (40, 34, 34)) <= 1) & (distance((36, 96, 96), (40, 26, 26)) > 1)


def test_a_coarse_answer_takes_the_shape_of_the_organ_and_loses_what_lies_elsewhere():
    scan = drawn(ELLIPSOID)
    own, _ = overlap(coarse(ELLIPSOID) > 0.5, ELLIPSOID)
    dice, _ = overlap(voted(scan, coarse(ELLIPSOID)), ELLIPSOID)
    assert own < 0.9 and dice > 0.95


def test_a_thin_ring_outlives_pieces_that_are_larger_than_itself():
    scan = drawn(RING, noise=1.5)
    own, _ = overlap(coarse(RING, 6) > 0.5, RING)
    dice, _ = overlap(voted(scan, coarse(RING, 6)), RING)
    pieces = Pieces(stretched(scan.image), SPACING, partitions)
    blind = vote(coarse(RING, 6), pieces, np.ones(len(SIZES)), ALL) > 0.5  # trusts pieces of every size
    assert overlap(blind, RING)[0] < 0.5 < own < dice - 0.1


def test_pieces_keep_a_blob_and_lose_a_ring_as_they_grow():
    blob, ring = (
        Pieces(stretched(drawn(truth, noise=1.5).image), SPACING, partitions).survival(truth, ALL)
        for truth in (ELLIPSOID, RING)
    )
    assert blob[0] > 0.9 and blob[SIZES.index(19.2)] > 0.8
    assert ring[0] > 0.85 and ring[SIZES.index(19.2)] < 0.2


def test_of_several_components_the_one_with_the_best_evidence_stays():
    answer = np.zeros((4, 20, 60), np.float32)
    answer[:, 2:18, 0:20] = 0.52  # large, doubtful
    answer[:, 5:15, 25:35] = 0.9
    answer[1, 5:9, 40:44] = 1.0  # certain, tiny
    answer[:, 5:15, 50:58] = 0.9  # nearly as strong as the strongest
    kept = without_strays(answer.copy()) > 0.5
    assert kept[:, 5:15, 25:35].all() and kept[:, 5:15, 50:58].all() and kept.sum() == 4 * 10 * (10 + 8)


@pytest.mark.parametrize("value", [0.0, 0.2, 0.7, 1.0])
def test_a_constant_answer_stays_what_it_is(value):
    answer = voted(drawn(ELLIPSOID), np.full(SHAPE, value, np.float32))
    assert (answer == (value > 0.5)).all()


def test_what_was_not_segmented_neither_votes_nor_is_answered():
    scan, said = drawn(ELLIPSOID), coarse(ELLIPSOID)
    slices = [4, 5, 6, 7]
    garbage = said.copy()
    garbage[:4] = 1
    answers = [SupervoxelVoter(lambda number: scan, partitions).vote(one, [task(1, slices)]) for one in (said, garbage)]
    assert (answers[0] == answers[1]).all() and not answers[0][:4].any() and answers[0][4:8].any()


def test_sizes_are_millilitres():
    """Twice as fine a grid of the same body has as many pieces of each size, not eight times as many."""
    scan = drawn(ELLIPSOID)
    sizes = []
    for spacing in (SPACING, tuple(mm / 2 for mm in SPACING)):

        def cut(image, *, min_sizes, spacing):
            sizes.append(np.array(min_sizes))
            return partitions(image, min_sizes=min_sizes, spacing=spacing)

        Pieces(stretched(scan.image), spacing, cut)
    assert (abs(sizes[1] - 8 * sizes[0]) <= 4).all()


def evaluated(voter, scans, *, pool=False, supports=(1, 2), queries=(0,)):
    said = {f"support{number}": coarse(ELLIPSOID) ** power for number, power in zip(supports, (1, 2), strict=False)}
    tasks = [
        Task(organ, identifier, (support,), query, task(support).groups, tuple(ALL))
        for query in queries
        for organ, identifier in (("organ", 1), ("the same again", 1))
        for support in supports
    ]
    return list(evaluate([Says(**said), Says(**said)], tasks, scans.__getitem__, pool=pool, voter=voter))


def test_voting_adds_scores_and_changes_none():
    scans = [drawn(ELLIPSOID, seed) for seed in range(3)]
    alone = evaluated(None, scans)
    both = evaluated(SupervoxelVoter(scans.__getitem__, partitions), scans)
    for without, result in zip(alone, both, strict=True):
        assert {name: result.row[name] for name in without.row} == without.row
        assert (result.prediction == without.prediction).all()
        assert {name for name in result.row if name.startswith(VOTED)} == {VOTED + name for name in METRICS}
        assert result.row["voted_dice"] > result.row["dice"]


def test_supports_that_are_pooled_vote_once_on_their_mean():
    scans = [drawn(ELLIPSOID, seed) for seed in range(3)]
    voter = SupervoxelVoter(scans.__getitem__, partitions)
    said = (coarse(ELLIPSOID) + coarse(ELLIPSOID) ** 2) / 2
    expected = voter.vote(said, [task(1), task(2)]) > 0.5
    pooled, _ = evaluated(voter, scans, pool=True)
    assert (pooled.predictions[VOTED] == expected).all()


def test_every_scan_is_cut_once_for_all_organs_methods_and_supports():
    scans = [drawn(ELLIPSOID, seed) for seed in range(4)]
    seen = []

    def cut(image, **options):
        seen.append(image.sum())
        return partitions(image, **options)

    evaluated(SupervoxelVoter(scans.__getitem__, cut), scans, queries=(0, 3))
    assert len(seen) == len(set(seen)) == 4
