"""From a scan to its supervoxels: rescale, graph segmentation, foreground mask, final labels [supervoxels 2].

The segmentation is the greedy graph clustering of Felzenszwalb and Huttenlocher (IJCV 2004) on the 26 neighbours of a
voxel, followed by a minimum-size pass. Labels are exact: they do not depend on the kernel, the number of threads or the
processor. Arrays are `(D, H, W)`; spacing is in mm and in the order `(sz, sx, sy)` of the published code.
"""

import math
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from scipy import ndimage

from supervoxels import _felzenszwalb, _oracle

# The 13 edges of a voxel to neighbours that come later in raster order, in the order in which ties are visited, each
# with its kind: 1 within a slice, 2 straight across, 3 and 4 diagonally across [supervoxels 2.3] [supervoxels 2.4].
DIRECTIONS = (
    ((0, 1, 0), 1), ((0, 1, 1), 1), ((0, 0, 1), 1), ((0, 1, -1), 1), ((1, 1, 0), 3), ((1, 1, 1), 4), ((1, 0, 1), 3),
    ((1, -1, 0), 3), ((1, -1, -1), 4), ((1, 0, -1), 3), ((1, 1, -1), 4), ((1, -1, 1), 4), ((1, 0, 0), 2),
)  # fmt: skip
OFFSETS = np.array([offset for offset, _ in DIRECTIONS], dtype=np.int32)

MAX_VOXELS = 2**31 - 1
MAX_INTENSITY = 1e150  # squared differences must stay finite


def felzenszwalb(
    image: np.ndarray,
    *,
    scale: float = 1.0,
    sigma: float = 0.0,
    min_size: int = 1000,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    threads: int = 1,
    order: str = "stable",
    kernel: str = "fast",
) -> np.ndarray:
    """Exact Felzenszwalb segmentation of a volume or a slice [supervoxels 2.2] to [supervoxels 2.7].

    Args:
        image: `(D, H, W)`, or a slice `(H, W)`; finite intensities of any real type. Published supervoxels are made of
            images on a 0..255 range, see `rescale`.
        scale: larger means larger segments in the first pass. It is divided by 255, as if images were on 0..1; on a
            0..255 range its effect is nil below some hundreds, and `min_size` decides [supervoxels S2].
        sigma: width of the Gaussian that smooths the image first, in the unit of `spacing`; 0 leaves it as it is. Axis
            `(z, y, x)` gets `sigma / spacing` with spacing in its own order `(sz, sx, sy)`, a quirk kept for parity.
        min_size: no segment has fewer voxels, unless the whole image has. 0 and 1 leave the first pass as it is.
        spacing: voxel size `(sz, sx, sy)`. Only the ratio `sz / sx` enters the costs of edges across slices.
        threads: used within the volume; the result is the same for any number.
        order: "stable" or "published": ties between edges of equal cost are broken by direction and position
            [supervoxels 2.4], or as in the published supervoxels [supervoxels 3.3] (always with the oracle, slow).
        kernel: "fast", or "oracle", the plain sort of all edges that it is tested against. Same labels.

    Returns:
        int32 array of the image's shape: labels 0, 1, ..., in raster order of each segment's first voxel.

    Raises:
        ValueError: the image is not 2D or 3D, empty, too large for 32-bit voxel numbers, or not finite; a parameter is
            out of its range; or the published order cannot be had for this image (never seen on a scan).

    A bright and a dark half, and an odd voxel that is too small to stay alone:

    >>> image = np.array([[0, 0, 90, 90], [0, 20, 90, 90]])
    >>> felzenszwalb(image, min_size=1)
    array([[0, 0, 1, 1],
           [0, 2, 1, 1]], dtype=int32)
    >>> felzenszwalb(image, min_size=2)
    array([[0, 0, 1, 1],
           [0, 0, 1, 1]], dtype=int32)
    """
    _check_parameters(scale, sigma, (min_size,), threads, order, kernel)
    kernel = kernel if order == "stable" else "oracle"
    volume, weights = _prepared(image, sigma, spacing, kernel)
    k, smallest = scale / 255.0, min(int(min_size), MAX_VOXELS)
    if kernel == "oracle":
        labels = _oracle.segment(volume, OFFSETS, weights, k, smallest, order == "published")
    else:
        labels, _ = _felzenszwalb.segment(volume, OFFSETS, weights, k, [smallest], int(threads))
    return labels.reshape(np.shape(image))


def partitions(
    image: np.ndarray,
    *,
    min_sizes: Sequence[int],
    scale: float = 1.0,
    sigma: float = 0.0,
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0),
    threads: int = 1,
) -> Iterator[np.ndarray]:
    """The segmentations of an image for several minimum sizes, in little more than the time of one.

    Yields, for each of `min_sizes` in the order given, what `felzenszwalb` with that `min_size` returns, label for
    label, as an array of its own. Arrays are made one at a time, so that a large scan needs memory for one of them;
    `list(partitions(...))` holds all. A segment of a larger minimum size is a union of segments of a smaller one.
    A minimum size of 0 or 1 beside larger ones costs some time and up to 20 bytes per voxel more.

    Parameters as in `felzenszwalb`.

    Raises:
        ValueError: at once, before the first array is asked for: as `felzenszwalb` does, or `min_sizes` is empty.

    >>> image = np.array([[0, 0, 90, 90], [0, 20, 90, 90]])
    >>> for labels in partitions(image, min_sizes=(1, 2, 5)):
    ...     print(labels)
    [[0 0 1 1]
     [0 2 1 1]]
    [[0 0 1 1]
     [0 0 1 1]]
    [[0 0 0 0]
     [0 0 0 0]]
    """
    _check_parameters(scale, sigma, min_sizes, threads)
    sizes = [min(int(size), MAX_VOXELS) for size in min_sizes]
    volume, weights = _prepared(image, sigma, spacing)
    finest, numbers = _felzenszwalb.segment(volume, OFFSETS, weights, scale / 255.0, sizes, int(threads))
    shape = np.shape(image)
    return (_felzenszwalb.renumber(finest, coarser).reshape(shape) for coarser in numbers)


def _prepared(
    image: np.ndarray, sigma: float, spacing: tuple[float, float, float], kernel: str = "fast"
) -> tuple[np.ndarray, np.ndarray]:
    """The checked, smoothed volume that a kernel takes, and the weights of its edges."""
    spacing = tuple(float(value) for value in spacing)
    if len(spacing) != 3 or not all(math.isfinite(value) and value > 0 for value in spacing):
        raise ValueError(f"spacing must be three positive numbers (sz, sx, sy), not {spacing}")
    if not 1e-6 <= spacing[0] / spacing[1] <= 1e6:
        raise ValueError(f"spacing {spacing}: slices and pixels differ by more than a factor of a million")
    volume = _checked_volume(image, kernel)
    if sigma > 0:
        volume = ndimage.gaussian_filter(volume, np.asarray(sigma, dtype=float) / spacing)
    return volume, np.array(edge_weights(spacing))


def edge_weights(spacing: tuple[float, float, float]) -> list[float]:
    """The 13 weights of squared differences, in the order of `DIRECTIONS` [supervoxels 2.3]."""
    s = spacing[0] / spacing[1]
    # the last bit decides ties: squares of quotients of roots, never the shorter (1 + s * s) / 2
    side = math.sqrt(1 + s * s) / math.sqrt(2)
    corner = math.sqrt(2 + s * s) / math.sqrt(3)
    weight = {1: 1.0, 2: s * s, 3: side * side, 4: corner * corner}
    return [weight[kind] for _, kind in DIRECTIONS]


def rescale(volume: np.ndarray) -> np.ndarray:
    """Stretch `volume` to 0..255 as float64 [supervoxels 2.1].

    Floating input is stretched in its own precision and widened afterwards, integer input in float64. A constant volume
    becomes 0 everywhere.

    Raises:
        ValueError: the volume is empty, complex, or holds NaN or infinite values.
    """
    volume = _checked_numbers(volume)
    if not np.issubdtype(volume.dtype, np.floating):
        volume = volume.astype(np.float64)
    if volume.dtype == np.float16:
        volume = volume.astype(np.float32)  # 255 times a float16 overflows
    lowest, highest = volume.min(), volume.max()
    if lowest == highest:
        return np.zeros(volume.shape)
    # this order of operations, because edges tie in the last bit; in place, because a scan is large
    stretched = volume - lowest
    stretched *= 255
    stretched /= highest - lowest
    return stretched.astype(np.float64, copy=False)


def foreground_mask(image: np.ndarray, threshold: float = 10.0) -> np.ndarray:
    """Bool mask `(D, H, W)` of the body in a rescaled, unsmoothed image [supervoxels 2.8].

    In every slice: the largest 8-connected piece above `threshold` (of equals the one that starts first in raster
    order), its holes filled. A hole is what has no 4-connected background path to the border of the slice.
    """
    return np.stack([_slice_mask(above) for above in np.asarray(image) > threshold])


def _slice_mask(above: np.ndarray) -> np.ndarray:
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(above.astype(np.uint8), connectivity=8)
    if count == 1:
        return np.zeros(above.shape, dtype=bool)
    areas = statistics[1:, cv2.CC_STAT_AREA]
    largest = 1 + np.flatnonzero(areas == areas.max())
    if len(largest) > 1:  # OpenCV may number components in another order than raster
        flat = labels.ravel()
        largest = [flat[np.isin(flat, largest).argmax()]]
    body = labels == largest[0]
    # a frame of background joins all paths to the border, whose piece then starts at the corner
    framed = np.pad(~body, 1, constant_values=True).astype(np.uint8)
    _, outside = cv2.connectedComponents(framed, connectivity=4)
    return (outside != outside[0, 0])[1:-1, 1:-1]


def supervoxels(
    volume: np.ndarray, *, spacing: tuple[float, float, float], min_size: int, fg_threshold: float = 10.0, **options
) -> np.ndarray:
    """Supervoxels of a scan `(D, H, W)`: steps A to D of [supervoxels 1], labels as in [supervoxels 2.9].

    Returns int32 labels of the volume's shape: 0 outside the body, elsewhere the number of the supervoxel. Numbers of
    supervoxels that lie outside the body are missing, and the mask may cut a supervoxel below `min_size`: loaders ask
    for an area of their own. Other options as in `felzenszwalb`; `fg_threshold` is on the 0..255 range.

    Raises:
        ValueError: as `felzenszwalb` does, or the volume is not 3D.
    """
    if np.ndim(volume) != 3:
        raise ValueError(f"a scan has three axes (D, H, W), this array has shape {np.shape(volume)}")
    image = rescale(volume)
    labels = felzenszwalb(image, min_size=min_size, spacing=spacing, **options)
    labels[labels == 0] = labels.max() + 1
    labels[~foreground_mask(image, fg_threshold)] = 0
    return labels


def _checked_numbers(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.size == 0:
        raise ValueError(f"the image is empty: shape {image.shape}")
    if not (np.issubdtype(image.dtype, np.floating) or np.issubdtype(image.dtype, np.integer) or image.dtype == bool):
        raise ValueError(f"the image must hold real numbers, not {image.dtype}")
    if np.issubdtype(image.dtype, np.floating) and not np.isfinite(image).all():
        raise ValueError("the image holds NaN or infinite values; repair it first")
    return image


def _checked_volume(image: np.ndarray, kernel: str) -> np.ndarray:
    """`image` as a C-ordered float64 `(D, H, W)`, or a ValueError that says what is wrong with it."""
    if np.ndim(image) not in (2, 3):
        raise ValueError(f"the image must be (D, H, W) or (H, W), its shape is {np.shape(image)}")
    image = _checked_numbers(image)
    depth, height, width = image.shape if image.ndim == 3 else (1, *image.shape)
    # the fast kernel numbers voxels of a padded copy, the oracle numbers 13 edges a voxel with 32 bits
    numbers = (depth + 1) * (height + 1) * (width + 1) if kernel == "fast" else 13 * depth * height * width // 2
    if numbers > MAX_VOXELS:
        raise ValueError(f"an image of shape {image.shape} has too many voxels for 32-bit numbers; cut it into parts")
    volume = np.ascontiguousarray(image, dtype=np.float64).reshape(depth, height, width)
    if max(abs(volume.min()), abs(volume.max())) > MAX_INTENSITY:
        raise ValueError(f"intensities beyond {MAX_INTENSITY:g} cannot be squared; rescale the image first")
    return volume


def _check_parameters(
    scale: float, sigma: float, min_sizes: Sequence[int], threads: int, order: str = "stable", kernel: str = "fast"
) -> None:
    for name, value in {"scale": scale, "sigma": sigma}.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} must be a finite number, 0 or larger, not {value}")
    if not len(min_sizes):
        raise ValueError("min_sizes must name at least one minimum size")
    for name, value, least in [*(("min_size", size, 0) for size in min_sizes), ("threads", threads, 1)]:
        if isinstance(value, bool) or int(value) != value or value < least:
            raise ValueError(f"{name} must be a whole number, {least} or larger, not {value}")
    if order not in ("stable", "published"):
        raise ValueError(f"order must be 'stable' or 'published', not {order!r}")
    if kernel not in ("fast", "oracle"):
        raise ValueError(f"kernel must be 'fast' or 'oracle', not {kernel!r}")
