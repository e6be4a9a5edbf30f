"""Segment test tasks slice by slice with a 2D method. Each scan is encoded once and matched for every organ."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from util.evaluation.metrics import overlap
from util.evaluation.tasks import Group, Segmenter, Task
from util.evaluation.volumes import VolumeInference

AGREEMENT = 0.8  # Dice; with ADNet and ALPNet on CHAOST2 0.5 and 0.7 let more drift through


def make_segmenter(
    method: torch.nn.Module,
    read_scan: Callable[[int], Any],
    device: torch.device,
    batch_size: int = 8,
    **patches,
) -> Segmenter:
    """The segmenter that fits a method in evaluation mode.

    Arguments as in `SliceInference` for 2D methods; for 3D ones `patches` are the keywords of `VolumeInference`.
    """
    if method.dims == 3:
        return VolumeInference(method, read_scan, device, **patches)
    return SliceInference(method, read_scan, device, batch_size)


@dataclass(frozen=True)
class EncodedScan:
    """The shape `(D, H, W)` of a scan and the features of its slices: tensors with D rows."""

    shape: tuple[int, ...]
    features: tuple[Tensor, ...]

    def rows(self, slices: Sequence[int]) -> tuple[Tensor, ...]:
        """Features of some slices as one episode: tensors `(1, slices, ...)`."""
        return tuple(f[list(slices)][None] for f in self.features)


class SliceInference:
    """A 2D method as a segmenter (see `util.evaluation.tasks.Segmenter`).

    Args:
        method: in evaluation mode, on `device`.
        read_scan: number -> scan with `image (D, H, W)`, and `organ(id)` if it is a support.
        device: where the method lives.
        batch_size: slices encoded and matched at once.
    """

    def __init__(
        self, method: torch.nn.Module, read_scan: Callable[[int], Any], device: torch.device, batch_size: int = 8
    ) -> None:
        self.method, self.read_scan, self.device, self.batch_size = method, read_scan, device, batch_size
        self._encoded: dict[int, EncodedScan] = {}

    def keep(self, scans: frozenset[int]) -> None:
        """Forget the features of all other scans."""
        self._encoded = {number: known for number, known in self._encoded.items() if number in scans}

    @torch.inference_mode()
    def probabilities(self, task: Task) -> np.ndarray:
        """Foreground probabilities `(D, H, W)` of a task, float32; 0 on slices that are not segmented."""
        query = self.encoded(task.query)
        volume = np.zeros(query.shape, dtype=np.float32)
        for group in self._grouped_by_similarity(task) if task.similar else task.groups:
            if group.query_slices:
                given = self._annotated(group, task.identifier)
                if group.pivot is None:
                    self._segment(volume, query, group.query_slices, *given)
                else:
                    self._walk(volume, query, group, *given)
        return volume

    @torch.inference_mode()
    def encoded(self, number: int) -> EncodedScan:
        """A scan with its features, encoded on first use."""
        if number not in self._encoded:
            scan = self.read_scan(number)
            slices, features, start = torch.from_numpy(scan.image)[:, None], (), 0
            for part in slices.split(self.batch_size):
                maps = self.method.encode(part.to(self.device))
                features = features or tuple(rows_like(one, len(slices)) for one in maps)
                for whole, one in zip(features, maps, strict=True):  # not joined at the end: that takes twice as much
                    whole[start : start + len(part)] = one
                start += len(part)
            self._encoded[number] = EncodedScan(scan.image.shape, features)
        return self._encoded[number]

    def _annotated(self, group: Group, identifier: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Features `(1, S, ...)` and masks `(1, S, H, W)` of the annotated slices."""
        shots = [(self.encoded(scan), z) for scan, z in group.support]
        features = tuple(torch.cat(maps, 1) for maps in zip(*(e.rows([z]) for e, z in shots), strict=True))
        masks = np.stack([self.read_scan(scan).organ(identifier)[z] for scan, z in group.support])
        return features, torch.from_numpy(masks)[None].to(self.device, torch.float32)

    def _segment(
        self, volume: np.ndarray, query: EncodedScan, slices: Sequence[int], features: tuple[Tensor, ...], masks: Tensor
    ) -> None:
        """Fill some slices of the volume."""
        for start in range(0, len(slices), self.batch_size):
            part = list(slices[start : start + self.batch_size])
            volume[part] = self.method.match(features, masks, query.rows(part)).probabilities[0].float().cpu().numpy()

    def _walk(
        self, volume: np.ndarray, query: EncodedScan, group: Group, features: tuple[Tensor, ...], masks: Tensor
    ) -> None:
        """Segment the pivot as annotated, then outward every slice with its predicted neighbour [visa 10.2]."""
        self._segment(volume, query, group.query_slices if group.anchored else [group.pivot], features, masks)
        for z, previous in group.walk:
            annotated, mask = volume[z].copy(), torch.from_numpy(volume[previous] > 0.5)[None, None]
            self._segment(volume, query, [z], query.rows([previous]), mask.to(self.device, torch.float32))
            if group.anchored:
                volume[z] = anchored(volume[z], annotated)

    def _grouped_by_similarity(self, task: Task) -> list[Group]:
        """The groups of a task, each with the run of query slices that looks most like its annotated slices."""
        query = self._appearance(task.query)
        likeness = torch.stack(
            [
                torch.stack([query @ self._appearance(scan)[z] for scan, z in group.support]).mean(0)
                for group in task.groups
            ]
        )
        borders = best_borders(likeness.cpu().numpy())
        groups = []
        for k, (group, first, last) in enumerate(zip(task.groups, borders, borders[1:], strict=False)):
            pivot = first + int(likeness[k, first:last].argmax()) if group.pivot is not None and last > first else None
            groups.append(replace(group, query_slices=tuple(range(first, last)), pivot=pivot))
        return groups

    def _appearance(self, number: int) -> Tensor:
        """`(D, C)`: mean feature of every slice against the scan's mean slice, of length 1."""
        deepest = self.encoded(number).features[-1]
        vectors = deepest.flatten(2).mean(2) if deepest.ndim > 2 else deepest
        return torch.nn.functional.normalize(vectors.float() - vectors.float().mean(0), dim=1)


def rows_like(part: Tensor, count: int) -> Tensor:
    """An empty tensor of `count` rows such as `part` has, in the same order in memory."""
    last = part.ndim == 4 and part.is_contiguous(memory_format=torch.channels_last)
    layout = torch.channels_last if last else torch.contiguous_format
    return torch.empty((count, *part.shape[1:]), dtype=part.dtype, device=part.device, memory_format=layout)


def anchored(carried: np.ndarray, annotated: np.ndarray) -> np.ndarray:
    """What to believe of a slice: what was carried to it together with what the annotated slices say, or these alone.

    Published walks believe what was carried there, so a mistake is passed on and grows, and an organ that has ended
    goes on [visa V18]. Agreement of both is the measure of confidence: where their masks overlap with a Dice of
    AGREEMENT, the answer is their mean. Else the walk has lost the organ: the annotated slices speak alone, and the
    walk goes on from there.

    Both are probabilities `(H, W)`.
    """
    dice, _ = overlap(carried > 0.5, annotated > 0.5)
    return (carried + annotated) / 2 if dice >= AGREEMENT else annotated


def best_borders(likeness: np.ndarray) -> list[int]:
    """Cut D slices into consecutive runs, one per group, so that the summed likeness is largest.

    Anatomy has an order: support slices ascend, so do the query slices that look like them.

    Likeness is `(groups, D)`; returned are `groups + 1` borders from 0 to D. A run may be empty.
    """
    count, depth = likeness.shape
    sums = np.concatenate((np.zeros((count, 1)), likeness.cumsum(1)), axis=1)
    best, cuts = sums[0], []  # best[z]: of the first z slices in the groups so far
    for k in range(1, count):
        gains = best - sums[k]
        cut = np.array([gains[: z + 1].argmax() for z in range(depth + 1)])
        best, cuts = gains[cut] + sums[k], [*cuts, cut]
    borders = [depth]
    for cut in reversed(cuts):
        borders.append(int(cut[borders[-1]]))
    return [0, *reversed(borders)]
