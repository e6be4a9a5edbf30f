"""Test protocols: which scan supports which [adnet 7] [training 6]. Which slices meet: pairings.py.

`strict` (default): every scan is a query exactly once, the support scan is the fold's own, all slices of the query are
segmented, so the whole volume is scored beside the slices that show the organ. `published`: the published book-keeping:
neighbouring folds share a scan, the support is a position in the sorted test scans, and with `parts` slices without the
organ are never looked at.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dataloaders.pairings import Pairing, Parts, Query, slices_showing
from util.dataset import Fold
from util.errors import UserError
from util.evaluation.tasks import Task


def published_fold(fold: Fold, support_index: int, order: str = "sorted") -> Fold:
    """The published fold: the support at `support_index` of the test scans (ADNet -1, Q-Net family 2).

    They stand in ascending order, or in the circular order of ALPNet, where the last fold wraps to the first scan.

    Raises:
        UserError: no such position.
    """
    tested = sorted(fold.tested) if order == "sorted" else [*fold.query, fold.support]
    if not -len(tested) <= support_index < len(tested):
        raise UserError(f"the fold has no test scan number {support_index}, it has {len(tested)} test scans {tested}")
    support = tested[support_index]
    return Fold(support, tuple(scan for scan in tested if scan != support))


def make_tasks(
    fold: Fold,
    organs: Mapping[str, int],
    label: Callable[[int], np.ndarray],
    pairing: Pairing | None = None,
    *,
    rotate: bool = False,
    absent: bool = True,
    spare: Sequence[int] = (),
) -> list[Task]:
    """All tasks of a fold: every query scan, every organ.

    Args:
        organs: name -> id.
        label: scan number -> labels `(D, H, W)`; asked once for every scan.
        pairing: how slices meet; None = in three parts.
        rotate: every tested scan supports every other one in turn, not the fold's own support alone.
        absent: also segment scans that lack the organ, where all that is found is wrong; published protocols know only
            scans that show it.
        spare: scans that may join as further shots after the tested ones: those that trained, without their labels.

    Raises:
        UserError: the fold's support scan does not show an organ, or there are fewer scans with it than shots.

    Examples:
        Two scans of 12 slices show the liver on slices 3 to 8; scan 8 is annotated, scan 1 is to be segmented:

        >>> label = np.zeros((12, 64, 64), dtype=int)
        >>> label[3:9, 20:40, 20:40] = 1
        >>> [task] = make_tasks(Fold(support=8, query=(1,)), {"liver": 1}, {8: label, 1: label}.get)
        >>> for group in task.groups:
        ...     print("(scan, slice)", group.support, "segments the slices", group.query_slices)
        (scan, slice) ((8, 4),) segments the slices (0, 1, 2, 3, 4)
        (scan, slice) ((8, 6),) segments the slices (5, 6)
        (scan, slice) ((8, 8),) segments the slices (7, 8, 9, 10, 11)
        >>> task.scored_slices
        (3, 4, 5, 6, 7, 8)
    """
    pairing = pairing or Parts()
    tested, tasks = [fold.support, *fold.query], []

    @functools.cache
    def shown_by(scan: int) -> tuple[int, dict[int, np.ndarray]]:
        """How many slices a scan has, and which of them show an organ: labels are large, this is not."""
        ids = label(scan)
        return len(ids), {identifier: slices_showing(ids, identifier) for identifier in organs.values()}

    def depth(scan: int) -> int:
        return shown_by(scan)[0]

    wanted = pairing.shots if pairing.shots_of == "scans" else 1
    for query, (organ, identifier) in itertools.product(fold.query, organs.items()):
        extent = shown_by(query)[1][identifier]
        for support in tested if rotate else [fold.support]:
            shown = shown_by(support)[1][identifier]
            if (not len(extent) and not absent) or support == query:
                continue
            if not len(shown) and support == fold.support:
                raise UserError(
                    f"scan {fold.support} is the support but shows no {organ} (id {identifier}); "
                    "choose another support scan for this fold in config.py"
                )
            if not len(shown):
                continue
            further = [scan for scan in (*tested, *spare) if scan not in (support, query)]
            showing = ((scan, shown_by(scan)[1][identifier]) for scan in further)  # no more are read than needed
            others = itertools.islice(((scan, slices) for scan, slices in showing if len(slices)), wanted - 1)
            supports = {support: shown, **dict(others)}
            if len(supports) < wanted:
                raise UserError(
                    f"test.shots={wanted} scans: only {len(supports)} scans beside the query show the {organ}"
                )
            known = Query(depth(query), extent, {scan: depth(scan) for scan in supports})
            groups = pairing.groups(pairing.annotated(supports), known)
            scored = pairing.scored(groups, known)
            tasks.append(Task(organ, identifier, tuple(supports), query, groups, scored, pairing.similar(known)))
    return tasks
