"""Superpixels: scikit-image's 2D Felzenszwalb on every slice, as ALPNet uses them [alpnet 3.6]."""

import numpy as np
from skimage.segmentation import felzenszwalb as felzenszwalb_2d

from supervoxels.segmentation import foreground_mask


def superpixels(
    volume: np.ndarray, threshold: float, min_size: int = 400, sigma: float = 1.0, published: bool = False
) -> np.ndarray:
    """Superpixels of every slice of a prepared scan, intensities as they are (no rescaling to 0..1).

    Args:
        volume: `(D, H, W)` intensities.
        threshold: the patient is what is brighter: 50.0001 for MR, 0.0001 for windowed CT.
        min_size: smallest superpixel before masking, in pixels.
        sigma: width of the Gaussian before the segmentation, in pixels.
        published: keep the published numbering, which loses the region numbered 0 and leaves gaps [alpnet D4].

    Returns:
        int32 `(D, H, W)`; 0 = outside the patient, ids are counted anew on every slice.
    """
    relabel = relabel_published if published else relabel_dense
    body = foreground_mask(volume, threshold)
    labels = [felzenszwalb_2d(image.astype(np.float64), min_size=min_size, sigma=sigma) for image in volume]
    return np.stack([relabel(slice_labels, mask) for slice_labels, mask in zip(labels, body, strict=True)])


def relabel_dense(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Regions 0..K cut by the mask -> 1, 2, ... without gaps, in the order of the regions' numbers; 0 outside."""
    result = np.zeros(labels.shape, dtype=np.int32)
    result[mask] = np.unique(labels[mask], return_inverse=True)[1] + 1
    return result


def relabel_published(labels: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The published rule: region i keeps its number, the last one K becomes K + 1, region 0 is lost [alpnet 3.6]."""
    numbers = np.arange(labels.max() + 1, dtype=np.int32)
    numbers[-1] += 1
    numbers[0] = 0
    return np.where(mask, numbers[labels], 0)
