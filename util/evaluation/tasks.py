"""Test tasks, and their scores. What segments them is in util/evaluation/slices.py."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from util.evaluation.metrics import METRICS, VOTED, no_volume_scores, slice_scores, volume_scores

Annotated = tuple[int, int]  # a support slice: (scan number, slice)


@dataclass(frozen=True)
class Group:
    """Query slices that are segmented with the same annotated support slices.

    Attributes:
        support: the annotated slices, one per shot.
        query_slices: what they segment, ascending.
        pivot: with it the group is walked: the annotated slices segment this query slice, and from there outward every
            slice is segmented with the one before it and its prediction (test.pairing=propagate).
        anchored: the carried mask is compared with the prediction from the annotated slices and dropped if they differ;
            False: it is believed, as published.
    """

    support: tuple[Annotated, ...]
    query_slices: tuple[int, ...]
    pivot: int | None = None
    anchored: bool = True

    @property
    def walk(self) -> list[tuple[int, int]]:
        """Slices after the pivot in the order they are walked, each with the one before it: all up, then all down."""
        up = [self.pivot, *(z for z in self.query_slices if z > self.pivot)]
        down = [self.pivot, *(z for z in reversed(self.query_slices) if z < self.pivot)]
        return [(z, previous) for way in (up, down) for previous, z in itertools.pairwise(way)]


@dataclass(frozen=True)
class Task:
    """One organ of one query scan, given one annotated support scan, or several.

    Attributes:
        organ: its name.
        identifier: its id in the label volumes.
        supports: numbers of the support scans.
        query: number of the query scan.
        groups: which support slices segment which query slices; slices in no group are not segmented.
        scored_slices: query slices that count for the protocol's score.
        similar: the groups' query slices are a first guess: every slice goes to the group it looks most like.
    """

    organ: str
    identifier: int
    supports: tuple[int, ...]
    query: int
    groups: tuple[Group, ...]
    scored_slices: tuple[int, ...]
    similar: bool = False

    @property
    def scans(self) -> frozenset[int]:
        """Numbers of all scans it needs."""
        return frozenset((self.query, *self.supports))

    @property
    def revisits(self) -> bool:
        """Whether a slice is segmented by several groups, as published walks do; each visit then counts."""
        return len(set(self.scored_slices)) < len(self.scored_slices)

    @property
    def segmented(self) -> int:
        """How many query slices are segmented."""
        return sum(len(group.query_slices) for group in self.groups)


class Memory(Protocol):
    """What remembers scans."""

    def keep(self, scans: frozenset[int]) -> None:
        """Forget all other scans."""


class Segmenter(Memory, Protocol):
    """What segments a task: a method with what it remembers of the scans."""

    def probabilities(self, task: Task) -> np.ndarray:
        """Foreground probabilities `(D, H, W)` float32; 0 on slices that are not segmented."""


class Voter(Memory, Protocol):
    """What makes another answer of a method's own: `util.evaluation.voting.SupervoxelVoter`."""

    def vote(self, probability: np.ndarray, tasks: Sequence[Task]) -> np.ndarray:
        """Foreground probabilities `(D, H, W)`, given those of tasks that differ in their supports only."""


@dataclass(frozen=True)
class Result:
    """A task's predictions `(D, H, W)` (bool), by their prefix in PREDICTIONS, and its row of scores.csv."""

    task: Task
    predictions: dict[str, np.ndarray]
    row: dict[str, Any]

    @property
    def prediction(self) -> np.ndarray:
        """The method's own."""
        return self.predictions[""]


def evaluate(
    segmenters: Sequence[Segmenter],
    tasks: Sequence[Task],
    read_scan: Callable[[int], Any],
    *,
    pool: bool = False,
    voter: Voter | None = None,
    memories: Sequence[Memory] = (),
) -> Iterator[Result]:
    """Results of all tasks, one query scan after the other. Of the scans only supports outlive their turn.

    Args:
        segmenters: one, or several whose probabilities are averaged (an ensemble).
        tasks: of one or several protocols.
        read_scan: number -> scan with `organ(id)`, its truth `(D, H, W)`, and `spacing` in mm along these axes.
        pool: tasks that differ in their supports only are averaged into one result.
        voter: makes a second answer of what was averaged, which is scored beside the method's own.
        memories: what else remembers the scans, as `read_scan` does.
    """
    for query in dict.fromkeys(task.query for task in tasks):
        own = [task for task in tasks if task.query == query]
        for memory in [*segmenters, *filter(None, [voter]), *memories]:
            memory.keep(frozenset().union(*(task.scans for task in own)))
        for together in _pools(own) if pool else [[task] for task in own]:
            yield _result(segmenters, together, read_scan, voter)


def _result(
    segmenters: Sequence[Segmenter], together: Sequence[Task], read_scan: Callable[[int], Any], voter: Voter | None
) -> Result:
    """That of one task, or of several that differ in their supports only."""
    task, scan = together[0], read_scan(together[0].query)
    truth, probability = scan.organ(task.identifier), mean_probability(segmenters, together)
    prediction = probability > 0.5
    predictions = {"": prediction}
    visits = [(prediction, task.scored_slices)]
    if task.revisits:  # the volume shows only the last visit
        groups = [[replace(one, groups=one.groups[at : at + 1]) for one in together] for at in range(len(task.groups))]
        visits = [(mean_probability(segmenters, own) > 0.5, own[0].groups[0].query_slices) for own in groups]
    supports = "+".join(str(scan) for one in together for scan in one.supports)
    row = {"organ": task.organ, "scan": task.query, "support": supports}
    row |= score(task, prediction, truth, scan.spacing, visits)
    if voter:
        voted = predictions[VOTED] = voter.vote(probability, together) > 0.5
        scores = score(task, voted, truth, scan.spacing, [(voted, task.scored_slices)])
        row |= {VOTED + name: scores[name] for name in METRICS}
    return Result(task, predictions, row)


def mean_probability(segmenters: Sequence[Segmenter], tasks: Sequence[Task]) -> np.ndarray:
    """Foreground probability `(D, H, W)`, averaged over segmenters and over tasks of one query."""
    volumes = (segmenter.probabilities(task) for segmenter in segmenters for task in tasks)
    return sum(volumes) / (len(segmenters) * len(tasks))


def _pools(tasks: Sequence[Task]) -> list[list[Task]]:
    return [[task for task in tasks if task.organ == organ] for organ in dict.fromkeys(task.organ for task in tasks)]


def score(
    task: Task,
    prediction: np.ndarray,
    truth: np.ndarray,
    spacing: Sequence[float],
    visits: Sequence[tuple[np.ndarray, Sequence[int]]],
) -> dict[str, Any]:
    """METRICS of the slices that the protocol scores, and of the volume if all was segmented; the number of slices.

    Masks are bool `(D, H, W)`, spacing is in mm along these axes. `visits` are predictions with the slices of them that
    count for the protocol's scores.
    """
    found = np.concatenate([volume[list(slices)] for volume, slices in visits])
    there = np.concatenate([truth[list(slices)] for _, slices in visits])
    complete = task.segmented == len(truth)
    return {
        **slice_scores(found, there),
        **(volume_scores(prediction, truth, spacing) if complete else no_volume_scores()),
        "slices": len(found),
    }
