"""Scores of a binary segmentation.

Empty masks, one rule for all scores: if prediction and truth are both empty, there is nothing to judge, every score
is NaN and does not count in means. If one of them is empty, everything is wrong: Dice, IoU, precision, recall and
surface Dice are 0, and the distances are the diagonal of the scan, the largest distance that two of its points can
have (an infinite distance cannot be averaged, and leaving the scan out would reward a method that finds nothing).
The volume error needs an organ: it is NaN if the truth is empty.
"""

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import distance_transform_edt

TOLERANCES = (2, 4)  # mm, of the normalised surface Dice


def overlap(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Dice = 2TP / (2TP + FP + FN) and IoU = TP / (TP + FP + FN) of two boolean arrays of one shape.

    Both are NaN if prediction and truth are empty [adnet 7.4].

    Raises:
        ValueError: the shapes differ.
    """
    hits, found, present = _counts(prediction, truth)
    total = found + present
    if total == 0:
        return math.nan, math.nan
    return 2 * hits / total, hits / (total - hits)


def volume_scores(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """Scores of a whole volume under the names they have in scores.csv.

    Args:
        prediction: bool `(D, H, W)`.
        truth: bool `(D, H, W)`.
        spacing: mm along the three axes, in the order of the axes.

    Returns:
        dice_volume, iou_volume, precision = TP / (TP + FP), recall = TP / (TP + FN), volume_error = predicted volume
        over true volume, less 1 (0.1: a tenth too large), and the `surface_scores`.

    Raises:
        ValueError: the shapes differ.

    Examples:
        A prediction that lies two columns of 1.5 mm beside the organ:

        >>> truth = np.zeros((10, 32, 32), dtype=bool)
        >>> truth[3:7, 8:24, 8:24] = True
        >>> scores = volume_scores(np.roll(truth, 2, axis=2), truth, spacing=(8.0, 1.5, 1.5))
        >>> {name: round(scores[name], 3) for name in ("dice_volume", "volume_error", "hd95", "nsd_2mm")}
        {'dice_volume': 0.875, 'volume_error': 0.0, 'hd95': 3.0, 'nsd_2mm': 0.689}
    """
    hits, found, present = _counts(prediction, truth)
    dice, iou = overlap(prediction, truth)
    nothing = math.nan if found + present == 0 else 0.0
    return {
        "dice_volume": dice,
        "iou_volume": iou,
        "precision": hits / found if found else nothing,
        "recall": hits / present if present else nothing,
        "volume_error": found / present - 1 if present else math.nan,
        **surface_scores(prediction, truth, spacing),
    }


VOLUME_SCORES = (
    *("dice_volume", "iou_volume", "precision", "recall", "volume_error", "hd95", "assd"),
    *(f"nsd_{tolerance}mm" for tolerance in TOLERANCES),
)


def surface_scores(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """How far apart the surfaces of two masks are.

    A surface is made of elements between voxels, each with its area in mm², so that neither thick slices nor their
    number distort a mean (Nikolov et al., JMIR 2021, "Clinically applicable segmentation of head and neck anatomy").
    Every element has a distance in mm to the nearest element of the other surface.

    Args:
        prediction: bool `(D, H, W)`.
        truth: bool `(D, H, W)`.
        spacing: mm along the three axes, in the order of the axes.

    Returns:
        hd95: 95th percentile of the distances, by area, of the worse of the two directions (mm).
        assd: mean of the distances of both surfaces, by area (mm).
        nsd_2mm, nsd_4mm: fraction of the area of both surfaces that lies within 2 and 4 mm of the other one.
    """
    names = [f"nsd_{tolerance}mm" for tolerance in TOLERANCES]
    if not (prediction.any() and truth.any()):
        nothing = not (prediction.any() or truth.any())
        far = math.nan if nothing else math.hypot(*(n * mm for n, mm in zip(truth.shape, spacing, strict=True)))
        return {"hd95": far, "assd": far, **dict.fromkeys(names, math.nan if nothing else 0.0)}
    directions = _distances(prediction, truth, spacing)
    distances, areas = (np.concatenate(both) for both in zip(*directions, strict=True))
    return {
        "hd95": max(_percentile(*direction, 0.95) for direction in directions),
        "assd": float(np.average(distances, weights=areas)),
        **{
            name: float(areas[distances <= tolerance].sum() / areas.sum())
            for name, tolerance in zip(names, TOLERANCES, strict=True)
        },
    }


def published_precision_and_recall(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """TP / (TP + FP) and TP / (TP + FN) as ALPNet's recorder has them: NaN wherever 0 / 0 [alpnet 12]."""
    hits, found, present = _counts(prediction, truth)
    return hits / found if found else math.nan, hits / present if present else math.nan


def _counts(prediction: np.ndarray, truth: np.ndarray) -> tuple[int, int, int]:
    """Voxels in both masks, in the prediction, in the truth."""
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    return tuple(int(np.count_nonzero(mask)) for mask in (prediction & truth, prediction, truth))


def _distances(
    prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """From prediction to truth and back: (mm to the other surface, area in mm²) of every surface element."""
    from monai.metrics.utils import get_mask_edges  # here, for it takes two seconds to load

    *edges, own_areas, other_areas = get_mask_edges(prediction, truth, spacing=tuple(spacing))
    # a distance transform takes the same time for a mask of noise, where a search for neighbours takes a minute
    maps = [distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return [
        (there[edge], areas[edge].astype(np.float64))
        for edge, there, areas in zip(edges, maps[::-1], (own_areas, other_areas), strict=True)
    ]


def _percentile(distances: np.ndarray, areas: np.ndarray, fraction: float) -> float:
    """Smallest distance within which `fraction` of the area lies."""
    order = np.argsort(distances)
    covered = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(np.searchsorted(covered, fraction), len(order) - 1)])
