"""Scores of a binary segmentation."""

import numpy as np


def overlap(prediction: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Dice = 2TP / (2TP + FP + FN) and IoU = TP / (TP + FP + FN) of two boolean arrays of one shape.

    Both are NaN where prediction and truth are empty (spec adnet 7.4).

    Raises:
        ValueError: the shapes differ.
    """
    if prediction.shape != truth.shape:
        raise ValueError(f"prediction {prediction.shape} and truth {truth.shape} differ in shape")
    hits = int(np.count_nonzero(prediction & truth))
    total = int(np.count_nonzero(prediction)) + int(np.count_nonzero(truth))
    if total == 0:
        return float("nan"), float("nan")
    return 2 * hits / total, hits / (total - hits)
