"""Cleaning a segmentation up: the largest component, filled holes. Labels `(D, H, W)`, organ by organ."""

import numpy as np
from scipy import ndimage

NEIGHBOURS = np.ones((3, 3, 3), bool)  # voxels that share a corner are connected


def cleaned(labels: np.ndarray, *, largest_component: bool = False, fill_holes: bool = False) -> np.ndarray:
    """A copy of labels `(D, H, W)` in which each keeps its largest piece, then loses its holes.

    A hole is background that a label encloses on all sides; other labels in there stay.
    """
    result = labels.copy()
    for identifier, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        part, own = result[box], labels[box] == identifier
        if largest_component:
            kept = _largest(own)
            part[own & ~kept] = 0
            own = kept
        if fill_holes:
            part[ndimage.binary_fill_holes(own) & (part == 0)] = identifier
    return result


def _largest(mask: np.ndarray) -> np.ndarray:
    pieces, _ = ndimage.label(mask, NEIGHBOURS)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces == sizes.argmax()
