"""Tasks: which slices meet which support, in both protocols."""

import numpy as np
import pytest

from dataloaders.pairings import PAIRINGS, Parts, make_pairing
from dataloaders.protocols import make_tasks
from util.dataset import Fold
from util.errors import UserError

ORGANS = {"liver": 1, "spleen": 4}
FOLD = Fold(support=9, query=(1, 2))


def label(depth: int, **extents: tuple[int, ...]) -> np.ndarray:
    volume = np.zeros((depth, 8, 8), dtype=np.int16)
    for organ, slices in extents.items():
        volume[list(slices), ORGANS[organ], 1] = ORGANS[organ]
    return volume


@pytest.fixture
def labels() -> dict[int, np.ndarray]:
    return {
        9: label(20, liver=range(2, 14), spleen=range(5, 8)),
        1: label(16, liver=range(4, 12), spleen=(3, 4, 6, 7)),  # the spleen is interrupted
        2: label(10, liver=range(10)),  # no spleen
    }


def by_name(tasks, organ, query):
    return next(task for task in tasks if (task.organ, task.query) == (organ, query))


def test_published_parts_look_only_at_slices_with_the_organ(labels):
    tasks = make_tasks(FOLD, ORGANS, labels.get, Parts(whole_volume=False))
    liver = by_name(tasks, "liver", 1)
    assert liver.scored_slices == tuple(range(4, 12))
    # 12 support slices from 2 on: positions 2, 6, 10; 8 query slices: borders 0, 2, 5, 8
    assert [(g.support, g.query_slices) for g in liver.groups] == [
        (((9, 4),), (4, 5)),
        (((9, 8),), (6, 7, 8)),
        (((9, 12),), (9, 10, 11)),
    ]
    assert liver.segmented == 8
    assert by_name(tasks, "spleen", 1).scored_slices == (3, 4, 6, 7)


def test_strict_parts_segment_every_slice_once_and_agree_inside(labels):
    strict = make_tasks(FOLD, ORGANS, labels.get, absent=False)
    published_tasks = make_tasks(FOLD, ORGANS, labels.get, Parts(whole_volume=False), absent=False)
    for task, published in zip(strict, published_tasks, strict=True):
        covered = sorted(z for group in task.groups for z in group.query_slices)
        assert covered == list(range(len(labels[task.query]))) and task.scored_slices == published.scored_slices
        support_of = {z: g.support for g in task.groups for z in g.query_slices}
        for group in published.groups:
            assert all(support_of[z] == group.support for z in group.query_slices)


def test_whole_uses_the_middle_slice_for_all(labels):
    (group,) = by_name(make_tasks(FOLD, ORGANS, labels.get, make_pairing("whole")), "liver", 1).groups
    assert group.support == ((9, 8),) and group.query_slices == tuple(range(16))


@pytest.mark.parametrize("kind", PAIRINGS)
def test_an_organ_the_query_lacks_is_looked_for_all_the_same(labels, kind):
    """What is found there is wrong, so every slice counts; the published protocols know only scans that show it."""
    tasks = make_tasks(FOLD, ORGANS, labels.get, make_pairing(kind))
    names = [("liver", 1), ("spleen", 1), ("liver", 2), ("spleen", 2)]
    assert [(task.organ, task.query) for task in tasks] == names
    assert tasks[3].scored_slices == tuple(range(10)) and tasks[3].segmented == 10
    tasks = make_tasks(FOLD, ORGANS, labels.get, make_pairing(kind), absent=False)
    assert [(task.organ, task.query) for task in tasks] == names[:3]


@pytest.mark.parametrize(
    ("kind", "options"), [("whole", dict(parts=5)), ("volume", dict(parts=1)), ("volume", dict(shots=3))]
)
def test_a_number_that_a_pairing_does_not_use_is_refused(kind, options):
    with pytest.raises(UserError, match="has no effect with pairing="):
        make_pairing(kind, **options)


def test_a_support_without_the_organ_is_an_error(labels):
    with pytest.raises(UserError, match=r"scan 9 .* no kidney"):
        make_tasks(FOLD, {"kidney": 7}, labels.get)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_more_parts_than_slices(labels, parts):
    labels[1] = label(6, liver=(2,))
    task = by_name(make_tasks(FOLD, {"liver": 1}, labels.get, Parts(parts=parts)), "liver", 1)
    assert sorted(z for group in task.groups for z in group.query_slices) == list(range(6))


def groups(labels, organ="liver", query=1, kind="parts", **options):
    return by_name(make_tasks(FOLD, ORGANS, labels.get, make_pairing(kind, **options)), organ, query).groups


def test_volume_annotates_every_slice_of_the_support(labels):
    (group,) = groups(labels, kind="volume")
    assert group.support == tuple((9, z) for z in range(2, 14)) and group.query_slices == tuple(range(16))


def test_position_goes_by_the_relative_height_and_not_by_the_truth(labels):
    # annotated slices 4, 8, 12 of 20: heights 0.225, 0.425, 0.625; their midpoints are slices 5.2 and 8.4 of 16
    found = groups(labels, kind="position")
    assert [g.query_slices for g in found] == [tuple(range(5)), (5, 6, 7), tuple(range(8, 16))]
    labels[1] = np.roll(labels[1], 2, axis=0)
    assert [g.query_slices for g in groups(labels, kind="position")] == [g.query_slices for g in found]


def test_propagation_starts_in_the_middle_of_every_part(labels):
    found = groups(labels, kind="propagate")
    # 8 slices from 4 on: positions 1, 4, 6
    assert [g.pivot for g in found] == [5, 8, 10]
    assert [g.support for g in found] == [((9, 4),), ((9, 8),), ((9, 12),)]


def test_shots_are_more_annotated_slices_a_part(labels):
    # positions int(12 * k / 18) for k = 1, 3, 5, ...
    found = groups(labels, shots=3)
    assert [[z for _, z in g.support] for g in found] == [[2, 4, 5], [6, 8, 9], [10, 12, 13]]
    assert [g.query_slices for g in found] == [g.query_slices for g in groups(labels)]


def test_shots_may_be_annotated_scans(labels):
    labels[3] = label(20, liver=range(0, 12))
    tasks = make_tasks(FOLD, {"liver": 1}, labels.get, Parts(shots=3, shots_of="scans"), spare=[3])
    task = by_name(tasks, "liver", 1)
    assert task.supports == (9, 2, 3)
    assert [len(g.support) for g in task.groups] == [3, 3, 3]


def test_too_few_scans_for_the_shots(labels):
    with pytest.raises(UserError, match="only 2 scans beside the query show the liver"):
        make_tasks(FOLD, ORGANS, labels.get, Parts(shots=3, shots_of="scans"))


def test_rotation_lets_every_tested_scan_support_the_others(labels):
    tasks = make_tasks(FOLD, {"liver": 1}, labels.get, rotate=True)
    assert [(task.query, task.supports) for task in tasks] == [(1, (9,)), (1, (2,)), (2, (9,)), (2, (1,))]


def test_a_rotated_support_that_lacks_the_organ_is_left_out(labels):
    tasks = make_tasks(FOLD, {"spleen": 4}, labels.get, rotate=True)
    assert [(task.query, task.supports) for task in tasks] == [(1, (9,)), (2, (9,)), (2, (1,))]
