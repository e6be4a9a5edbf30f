"""Segment test tasks with a method and score them. Each scan is encoded once and matched for every organ."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from util.metrics import overlap


@dataclass(frozen=True)
class Group:
    """Query slices that are segmented with the same annotated support slices."""

    support_slices: tuple[int, ...]
    query_slices: tuple[int, ...]


@dataclass(frozen=True)
class Task:
    """One organ of one query scan, given one annotated support scan.

    Attributes:
        organ: its name.
        identifier: its id in the label volumes.
        support: number of the support scan.
        query: number of the query scan.
        groups: which support slices segment which query slices; slices in no group are not segmented.
        scored_slices: query slices that count for the protocol's score.
    """

    organ: str
    identifier: int
    support: int
    query: int
    groups: tuple[Group, ...]
    scored_slices: tuple[int, ...]

    @property
    def complete(self) -> bool:
        """True for tasks whose groups cover slices beyond the scored ones, so the whole volume can be scored too."""
        return sum(len(group.query_slices) for group in self.groups) > len(self.scored_slices)


@dataclass(frozen=True)
class Result:
    """A task's prediction `(D, H, W)` (bool) and its row of scores.csv."""

    task: Task
    prediction: np.ndarray
    row: dict[str, Any]


def evaluate(
    method: torch.nn.Module,
    tasks: Sequence[Task],
    read_scan: Callable[[int], Any],
    *,
    device: torch.device,
    batch_size: int = 8,
) -> Iterator[Result]:
    """Results of all tasks, one query scan after the other.

    Args:
        method: a few-shot method in evaluation mode.
        tasks: of one or several protocols.
        read_scan: number -> scan with `image`, `label` and `organ(id)`.
        device: where the method lives.
        batch_size: slices encoded and matched at once.
    """
    encoded: dict[int, tuple] = {}
    for query in dict.fromkeys(task.query for task in tasks):
        own = [task for task in tasks if task.query == query]
        needed = {query, *(task.support for task in own)}
        encoded = {number: known for number, known in encoded.items() if number in needed}
        for number in sorted(needed - encoded.keys()):
            scan = read_scan(number)
            encoded[number] = scan, encode_scan(method, scan.image, device, batch_size)
        for task in own:
            support, query_scan = encoded[task.support], encoded[query]
            prediction = segment(method, task, support, query_scan, batch_size)
            yield Result(task, prediction, score(task, prediction, query_scan[0].organ(task.identifier)))


@torch.inference_mode()
def encode_scan(
    method: torch.nn.Module, image: np.ndarray, device: torch.device, batch_size: int
) -> tuple[Tensor, ...]:
    """Features of every slice of a scan `(D, H, W)`: tensors with D rows."""
    slices = torch.from_numpy(image)[:, None]
    parts = [method.encode(part.to(device)) for part in slices.split(batch_size)]
    return tuple(torch.cat(maps) for maps in zip(*parts, strict=True))


@torch.inference_mode()
def segment(method: torch.nn.Module, task: Task, support: tuple, query: tuple, batch_size: int) -> np.ndarray:
    """Prediction `(D, H, W)` of a task; support and query are (scan, features)."""
    (support_scan, support_features), (query_scan, query_features) = support, query
    prediction = np.zeros(query_scan.image.shape, dtype=bool)
    device = query_features[0].device
    for group in task.groups:
        rows = list(group.support_slices)
        masks = torch.from_numpy(support_scan.organ(task.identifier)[rows]).to(device, torch.float32)
        given = tuple(f[rows][None] for f in support_features)
        for start in range(0, len(group.query_slices), batch_size):
            slices = list(group.query_slices[start : start + batch_size])
            output = method.match(given, masks[None], tuple(f[slices][None] for f in query_features))
            prediction[slices] = output.masks[0].cpu().numpy()
    return prediction


def score(task: Task, prediction: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
    """One row of scores.csv: the protocol's Dice and IoU, and the Dice over the whole volume where it was segmented."""
    scored = list(task.scored_slices)
    dice, iou = overlap(prediction[scored], truth[scored])
    volume = overlap(prediction, truth)[0] if task.complete or len(scored) == len(truth) else float("nan")
    return {
        "organ": task.organ,
        "scan": task.query,
        "support": task.support,
        "dice": dice,
        "iou": iou,
        "dice_volume": volume,
        "slices": len(scored),
    }
