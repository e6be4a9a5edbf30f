"""Scans without truth segmented by trained methods, given annotated ones: any grid in, the same grid out."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from dataloaders.pairings import Pairing, Query, slices_showing
from dataloaders.raw.regrid import Preparation, onto_own_grid, onto_training_grid
from dataloaders.scans import Scan, z_score
from util.checkpoints import TrainedMethod
from util.evaluation.slices import make_segmenter
from util.evaluation.tasks import Task, mean_probability
from util.evaluation.voting import Cut, SupervoxelVoter
from util.volume import Volume

QUERY = -1  # its number among the scans; supports count from 0


class Predictor:
    """Checkpoints and supports: all that segments a query.

    Args:
        members: trained methods whose probabilities are averaged; their scans were prepared alike.
        supports: prepared image and label of every annotated scan; the average is over them, too.
        organs: id in the labels -> name.
        pairing: how query slices meet annotated slices; "parts" cannot, it asks for the organ's extent in the query.
        device: where the methods live.
        memory_gb: of 3D methods, for the patches they look at; 0 = no bound.
        cut: makes the supervoxels that vote, see `SupervoxelVoter`; None = the methods' own answer.
    """

    def __init__(
        self,
        members: Sequence[TrainedMethod],
        supports: Sequence[tuple[Volume, Volume]],
        organs: Mapping[int, str],
        pairing: Pairing,
        device: torch.device,
        memory_gb: float = 0.0,
        cut: Cut | None = None,
    ) -> None:
        self.members, self.organs, self.pairing = members, organs, pairing
        self.preparation = Preparation.from_plain(members[0].preparation)
        self.scans = dict(enumerate(supports))
        self._supports: dict[tuple, Scan] = {}
        self.annotated = {number: label.array for number, (_, label) in self.scans.items()}
        self.segmenters = [
            make_segmenter(member.method, functools.partial(self._scan, member), device, memory_gb=memory_gb)
            for member in members
        ]
        self.voter = SupervoxelVoter(functools.partial(self._scan, members[0]), cut) if cut else None

    def _scan(self, member: TrainedMethod, number: int) -> Scan:
        """A scan as a method sees it; supports are kept, a query may be large."""
        key = member.mean_and_std, number
        if key in self._supports:
            return self._supports[key]
        image, label = self.scans[number]
        name = "the query" if number == QUERY else f"support {number + 1}"
        array = z_score(image.array, member.mean_and_std, Path(name))
        scan = Scan(number, array, label.array, None, image.geometry, image.array.shape)
        if number != QUERY:
            self._supports[key] = scan
        return scan

    def labels(
        self,
        image: Volume,
        *,
        prepared: bool = False,
        take: Callable[[int, np.ndarray], None] = lambda place, probability: None,
    ) -> np.ndarray:
        """Organ ids `(D, H, W)` on the scan's own grid. If several organs claim a voxel, the highest probability wins.

        Args:
            prepared: intensities are those of the training scans already.
            take: gets the place of every organ, from 0 on, and its probability `(D, H, W)`, float32.
        """
        query, empty = onto_training_grid(image, None, self.preparation, prepared=prepared)
        self.scans[QUERY] = query, empty
        for remembering in [*self.segmenters, *filter(None, [self.voter])]:
            remembering.keep(frozenset(self.annotated))
        if self.voter:
            self.voter.pieces(QUERY)  # first, for this takes most memory, and features are not there yet
        labels, best = None, None
        for place, (identifier, name) in enumerate(self.organs.items()):
            tasks = self._tasks(name, identifier, len(query.array))
            answer = mean_probability(self.segmenters, tasks)
            if self.voter:
                answer = self.voter.vote(answer, tasks)
            probability = onto_own_grid(answer, query.geometry, image)
            take(place, probability)
            if best is None:  # not earlier: the first organ takes most memory
                best = np.full(probability.shape, 0.5, np.float32)
                labels = np.zeros(probability.shape, np.uint8 if max(self.organs) < 256 else np.int16)
            wins = probability > best
            labels[wins], best[wins] = identifier, probability[wins]
        return labels

    def _tasks(self, organ: str, identifier: int, depth: int) -> list[Task]:
        """Tasks that segment an organ in a query of `depth` slices: one for every support that shows it."""
        tasks = []
        for support, label in self.annotated.items():
            shown = slices_showing(label, identifier)
            if len(shown):
                known = Query(depth, None, {support: len(label)})
                groups = self.pairing.groups(self.pairing.annotated({support: shown}), known)
                similar = self.pairing.similar(known)
                tasks.append(Task(organ, identifier, (support,), QUERY, groups, (), similar=similar))
        return tasks
