"""Scores of a binary segmentation: METRICS, one row for each.

Empty masks, one rule for all scores: if prediction and truth are both empty, there is nothing to judge, every score
is NaN and does not count in means. If one of them is empty, everything is wrong: Dice, IoU, precision, recall and
surface Dice are 0, and the distances are the diagonal of the scan, the largest distance that two of its points can
have (an infinite distance cannot be averaged, and leaving the scan out would reward a method that finds nothing).
The volume error needs an organ: it is NaN if the truth is empty.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.ndimage import distance_transform_edt

from util.commands import be_somebody


class Masks:
    """Prediction and truth with what several scores need of them.

    Args:
        prediction: bool `(D, H, W)`, or any shape if no surface is asked for.
        truth: the same.
        spacing: mm along the axes, in the order of the axes.

    Raises:
        ValueError: the shapes differ.
    """

    def __init__(self, prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float] = ()) -> None:
        if prediction.shape != truth.shape:
            raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
        self.prediction, self.truth, self.spacing = prediction, truth, tuple(spacing)
        counted = (prediction & truth, prediction, truth)
        self.hits, self.found, self.present = (int(np.count_nonzero(mask)) for mask in counted)
        self.worst = 0.0 if self.found or self.present else math.nan

    @functools.cached_property
    def surfaces(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """From prediction to truth and back: (mm to the other surface, area in mm²) of every surface element.

        A surface is made of elements between voxels, each with its area, so that neither thick slices nor their number
        distort a mean (Nikolov et al., JMIR 2021, "Clinically applicable segmentation of head and neck anatomy").
        If a mask is empty, one element stands for each surface, as far away as can be; NaN if both are.
        """
        if not (self.found and self.present):
            diagonal = math.hypot(*(n * mm for n, mm in zip(self.truth.shape, self.spacing, strict=True)))
            return [(np.array([diagonal + self.worst]), np.ones(1))] * 2
        be_somebody()  # MONAI asks for the user's name
        from monai.metrics.utils import get_mask_edges  # here, for it takes two seconds to load

        *edges, own_areas, other_areas = get_mask_edges(self.prediction, self.truth, spacing=self.spacing)
        # a distance transform takes the same time for a mask of noise, where a search for neighbours takes a minute
        maps = [distance_transform_edt(~edge, sampling=self.spacing) for edge in edges]
        return [
            (there[edge], areas[edge].astype(np.float64))
            for edge, there, areas in zip(edges, maps[::-1], (own_areas, other_areas), strict=True)
        ]


def ratio(part: int, whole: int, nothing: float = math.nan) -> float:
    """part / whole, and `nothing` for 0 / 0."""
    return part / whole if whole else nothing


def hd95(masks: Masks) -> float:
    """95th percentile of the distances, by area, of the worse of the two directions (mm)."""
    return max(_percentile(*direction, 0.95) for direction in masks.surfaces)


def assd(masks: Masks) -> float:
    """Mean of the distances of both surfaces, by area (mm)."""
    distances, areas = map(np.concatenate, zip(*masks.surfaces, strict=True))
    return float(np.average(distances, weights=areas))


def surface_dice(masks: Masks, tolerance: float) -> float:
    """Fraction of the area of both surfaces that lies within `tolerance` mm of the other one."""
    if not (masks.found and masks.present):
        return masks.worst
    distances, areas = map(np.concatenate, zip(*masks.surfaces, strict=True))
    return float(areas[distances <= tolerance].sum() / areas.sum())


def _percentile(distances: np.ndarray, areas: np.ndarray, fraction: float) -> float:
    """Smallest distance within which `fraction` of the area lies."""
    order = np.argsort(distances)
    covered = np.cumsum(areas[order]) / areas.sum()
    return float(distances[order][min(np.searchsorted(covered, fraction), len(order) - 1)])


@dataclass(frozen=True)
class Metric:
    """A score, and how it is shown.

    Attributes:
        title: in words.
        compute: masks -> score.
        unit: "" if the score has none.
        better: 1 if more is better, -1 if less is, 0 if nearer to 0 is.
        digits: after the decimal point.
        whole: of the whole volume; False: of the slices that the protocol scores.
    """

    title: str
    compute: Callable[[Masks], float]
    unit: str = ""
    better: int = 1
    digits: int = 3
    whole: bool = True

    @property
    def heading(self) -> str:
        """Title with unit."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    def can_be(self, value: float) -> bool:
        """True for a value that the score can have: shares lie between 0 and 1, distances above 0, all are finite."""
        return math.isfinite(value) and (not self.better or 0 <= value <= (1 if self.better > 0 else math.inf))

    def worth(self, value: float) -> float:
        """The value, so that more is better."""
        return self.better * value if self.better else -abs(value)


def _dice(masks: Masks) -> float:
    return ratio(2 * masks.hits, masks.found + masks.present)


def _iou(masks: Masks) -> float:
    return ratio(masks.hits, masks.found + masks.present - masks.hits)


METRICS = {  # the name is the column of scores.csv
    "dice": Metric("Dice", _dice, whole=False),
    "iou": Metric("IoU", _iou, whole=False),
    # as ALPNet's recorder has them: NaN wherever 0 / 0 [alpnet 12]
    "precision_slices": Metric("Precision, scored slices", lambda m: ratio(m.hits, m.found), whole=False),
    "recall_slices": Metric("Recall, scored slices", lambda m: ratio(m.hits, m.present), whole=False),
    "dice_volume": Metric("Dice, whole volume", _dice),
    "iou_volume": Metric("IoU, whole volume", _iou),
    "precision": Metric("Precision", lambda m: ratio(m.hits, m.found, m.worst)),
    "recall": Metric("Recall", lambda m: ratio(m.hits, m.present, m.worst)),
    "volume_error": Metric("Relative volume error", lambda m: ratio(m.found, m.present) - 1, better=0),
    "hd95": Metric("HD95", hd95, unit="mm", better=-1, digits=1),
    "assd": Metric("ASSD", assd, unit="mm", better=-1, digits=2),
    "nsd_2mm": Metric("Surface Dice at 2 mm", functools.partial(surface_dice, tolerance=2)),
    "nsd_4mm": Metric("Surface Dice at 4 mm", functools.partial(surface_dice, tolerance=4)),
}

# predictions whose scores scores.csv may hold: prefix of their columns -> what is added to the titles
VOTED = "voted_"
PREDICTIONS = {"": "", VOTED: ", voted"}
COLUMNS = {
    prefix + name: replace(metric, title=metric.title + words)
    for prefix, words in PREDICTIONS.items()
    for name, metric in METRICS.items()
}
HEADLINES = tuple(  # what a report compares methods by
    prefix + name for name in ("dice", "dice_volume", "hd95", "nsd_2mm") for prefix in PREDICTIONS
)


def slice_scores(prediction: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """METRICS of the slices that a protocol scores; bool masks of one shape."""
    return _scores(Masks(prediction, truth), whole=False)


def volume_scores(prediction: np.ndarray, truth: np.ndarray, spacing: Sequence[float]) -> dict[str, float]:
    """METRICS of a whole volume; bool masks `(D, H, W)`, spacing in mm in the order of the axes.

    Examples:
        A prediction that lies two columns of 1.5 mm beside the organ:

        >>> truth = np.zeros((10, 32, 32), dtype=bool)
        >>> truth[3:7, 8:24, 8:24] = True
        >>> scores = volume_scores(np.roll(truth, 2, axis=2), truth, spacing=(8.0, 1.5, 1.5))
        >>> {name: round(scores[name], 3) for name in ("dice_volume", "volume_error", "hd95", "nsd_2mm")}
        {'dice_volume': 0.875, 'volume_error': 0.0, 'hd95': 3.0, 'nsd_2mm': 0.689}
    """
    return _scores(Masks(prediction, truth, spacing), whole=True)


def no_volume_scores() -> dict[str, float]:
    """The same for a volume that was not segmented as a whole: NaN."""
    return {name: math.nan for name, metric in METRICS.items() if metric.whole}


def _scores(masks: Masks, whole: bool) -> dict[str, float]:
    return {name: metric.compute(masks) for name, metric in METRICS.items() if metric.whole is whole}


def overlap(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Dice and IoU of two bool arrays of one shape; NaN if both are empty [adnet 7.4]."""
    scores = slice_scores(prediction, truth)
    return scores["dice"], scores["iou"]
