"""Tasks: which slices meet which support, in both protocols."""

import numpy as np
import pytest

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


def test_legacy_parts_look_only_at_slices_with_the_organ(labels):
    tasks = make_tasks(FOLD, ORGANS, labels, whole_volume=False)
    liver = by_name(tasks, "liver", 1)
    assert liver.scored_slices == tuple(range(4, 12))
    # 12 support slices from 2 on: positions 2, 6, 10; 8 query slices: borders 0, 2, 5, 8
    assert [(g.support_slices, g.query_slices) for g in liver.groups] == [
        ((4,), (4, 5)),
        ((8,), (6, 7, 8)),
        ((12,), (9, 10, 11)),
    ]
    assert not liver.complete
    assert by_name(tasks, "spleen", 1).scored_slices == (3, 4, 6, 7)


def test_strict_parts_segment_every_slice_once_and_agree_inside(labels):
    strict = make_tasks(FOLD, ORGANS, labels, whole_volume=True)
    legacy = make_tasks(FOLD, ORGANS, labels, whole_volume=False)
    for task, published in zip(strict, legacy, strict=True):
        covered = sorted(z for group in task.groups for z in group.query_slices)
        assert covered == list(range(len(labels[task.query]))) and task.scored_slices == published.scored_slices
        support_of = {z: g.support_slices for g in task.groups for z in g.query_slices}
        for group in published.groups:
            assert all(support_of[z] == group.support_slices for z in group.query_slices)


def test_whole_uses_the_middle_slice_for_all(labels):
    (group,) = by_name(make_tasks(FOLD, ORGANS, labels, match="whole"), "liver", 1).groups
    assert group.support_slices == (8,) and group.query_slices == tuple(range(16))


def test_an_organ_the_query_lacks_is_no_task(labels):
    tasks = make_tasks(FOLD, ORGANS, labels)
    assert [(task.organ, task.query) for task in tasks] == [("liver", 1), ("spleen", 1), ("liver", 2)]


def test_a_support_without_the_organ_is_an_error(labels):
    with pytest.raises(UserError, match=r"scan 9 .* no kidney"):
        make_tasks(FOLD, {"kidney": 7}, labels)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_more_parts_than_slices(labels, parts):
    labels[1] = label(6, liver=(2,))
    task = by_name(make_tasks(FOLD, {"liver": 1}, labels, parts=parts), "liver", 1)
    assert sorted(z for group in task.groups for z in group.query_slices) == list(range(6))
