"""Test protocols: which scan supports which [adnet 7] [training 6]. Which slices meet: pairings.py.

`strict` (default): every scan is a query exactly once, the support scan is the fold's own, all slices of the query are
segmented, so the whole volume is scored beside the slices that show the organ. `published`: the published book-keeping:
neighbouring folds share a scan, the support is a position in the sorted test scans, and with `parts` slices without the
organ are never looked at.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dataloaders.pairings import Pairing, Parts, slices_showing
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
        fold: support and query scans.
        organs: name -> id.
        label: scan number -> labels `(D, H, W)`.
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
    for query in fold.query:
        for organ, identifier in organs.items():
            extent = slices_showing(label(query), identifier)
            if not len(extent) and not absent:
                continue
            for support in tested if rotate else [fold.support]:
                shown = slices_showing(label(support), identifier)
                if not len(shown) and support == fold.support:
                    raise UserError(
                        f"scan {fold.support} is the support but shows no {organ} (id {identifier}); "
                        "choose another support scan for this fold in config.py"
                    )
                if support == query or not len(shown):
                    continue
                further = [scan for scan in (*tested, *spare) if scan not in (support, query)]
                wanted = pairing.shots if pairing.shots_of == "scans" else 1
                supports = _support_scans({support: shown}, further, label, organ, identifier, wanted)
                tasks.append(_task(organ, identifier, query, supports, label, extent, pairing))
    return tasks


def _task(
    organ: str,
    identifier: int,
    query: int,
    supports: Mapping[int, np.ndarray],
    label: Callable[[int], np.ndarray],
    extent: np.ndarray,
    pairing: Pairing,
) -> Task:
    depth, depths = len(label(query)), {scan: len(label(scan)) for scan in supports}
    groups = pairing.groups(pairing.annotated(supports), depth, extent, depths)
    scored = pairing.scored(groups, depth, extent)
    return Task(organ, identifier, tuple(supports), query, groups, scored, pairing.similar(extent))


def _support_scans(
    shown: dict[int, np.ndarray],
    further: Sequence[int],
    label: Callable[[int], np.ndarray],
    organ: str,
    identifier: int,
    wanted: int,
) -> dict[int, np.ndarray]:
    """The support scans of a task with the slices that show the organ: `shown`, and others until there are enough."""
    for scan in further:
        if len(shown) == wanted:
            break
        slices = slices_showing(label(scan), identifier)
        if len(slices):
            shown[scan] = slices
    if len(shown) < wanted:
        raise UserError(f"test.shots={wanted} scans: only {len(shown)} scans beside the query show the {organ}")
    return shown
