"""Changes of an image that leave its anatomy: gamma, affine, elastic (spec training_protocol 4).

Parameters are drawn first (`draw_augmentation`), then applied by plain functions, so a change can be repeated, tested
against golden numbers and moved to another image.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

cv2.setNumThreads(1)  # loader workers are the parallelism; threads below them only get in each other's way


@dataclass(frozen=True)
class Ranges:
    """How far each change may go; the `episode.*` keys of the configuration."""

    gamma: tuple[float, float] = (0.5, 1.5)
    rotation: float = 5.0  # degrees, either way
    shift: float = 5.0  # pixels, either way
    shift_slices: float = 1.0  # volumes: slices, either way
    shear: float = 5.0  # degrees, either way
    zoom: tuple[float, float] = (0.9, 1.2)  # volumes: an own factor for every axis
    elastic: float = 10.0  # factor of the smoothed noise; 10 gives about 0.3 pixels rms


@dataclass(frozen=True)
class Warp:
    """An affine map and an elastic displacement.

    Attributes:
        rotation: degrees, counter-clockwise.
        shift: `(x, y)` in pixels.
        shear: degrees.
        zoom: isotropic factor about the centre.
        noise: `(2, H, W)` uniform in [0, 1), the raw displacement of columns, then rows; None = no elastic part.
        elastic: factor of the smoothed noise.
    """

    rotation: float
    shift: tuple[float, float]
    shear: float
    zoom: float
    noise: np.ndarray | None = None
    elastic: float = 10.0


@dataclass(frozen=True)
class Augmentation:
    """What happens to one image: a gamma exponent, a warp, both or neither. Gamma comes first, in ALPNet last."""

    gamma: float | None = None
    warp: Any = None  # a Warp, or for volumes a VolumeWarp
    gamma_last: bool = False

    def apply(self, image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Image `(H, W)` and mask `(H, W)`, both float -> the same after the change; the mask stays 0 or 1."""
        if self.gamma is not None and not self.gamma_last:
            image = change_gamma(image, self.gamma)
        if self.warp is not None:
            image = warp_image(image, self.warp)
            mask = np.rint(warp_image(mask, self.warp))  # rint: 0.5 goes to 0
        if self.gamma is not None and self.gamma_last:
            image = change_gamma(image, self.gamma)
        return image, mask


def draw_for_one(
    generator: np.random.Generator,
    shape: tuple[int, ...],
    ranges: Ranges,
    queries: int = 1,
    draw: Callable | None = None,
) -> tuple[Augmentation, ...]:
    """Changes of the support and of the query: exactly one of them gets the gamma, exactly one the warp (ADNet).

    Several queries are changed alike. `draw` makes a warp of the first three arguments; None = `draw_warp`.
    """
    gamma, warp = generator.uniform(*ranges.gamma), (draw or draw_warp)(generator, shape, ranges)
    gamma_on_query, warp_on_query = generator.random(2) > 0.5
    support = Augmentation(None if gamma_on_query else gamma, None if warp_on_query else warp)
    query = Augmentation(gamma if gamma_on_query else None, warp if warp_on_query else None)
    return support, *[query] * queries


def draw_for_both(
    generator: np.random.Generator,
    shape: tuple[int, ...],
    ranges: Ranges,
    queries: int = 1,
    draw: Callable | None = None,
) -> tuple[Augmentation, ...]:
    """Support and queries each get a warp, then a gamma, drawn independently (ALPNet, spec alpnet 6)."""
    draw = draw or draw_warp
    changes = [
        Augmentation(warp=draw(generator, shape, ranges), gamma=generator.uniform(*ranges.gamma), gamma_last=True)
        for _ in range(1 + queries)
    ]
    return tuple(changes)


def draw_warp(generator: np.random.Generator, shape: tuple[int, int], ranges: Ranges) -> Warp:
    """A warp for images of `shape` `(H, W)`."""
    return Warp(
        rotation=generator.uniform(-ranges.rotation, ranges.rotation),
        shift=tuple(generator.uniform(-ranges.shift, ranges.shift, size=2)),
        shear=generator.uniform(-ranges.shear, ranges.shear),
        zoom=generator.uniform(*ranges.zoom),
        noise=generator.random((2, *shape), dtype=np.float32) if ranges.elastic else None,
        elastic=ranges.elastic,
    )


def change_gamma(image: np.ndarray, exponent: float, extremes: tuple[float, float] | None = None) -> np.ndarray:
    """`r ((x - m + 1e-5) / r) ** g + m` with m the minimum and r the range plus 1e-5, over the whole array.

    `extremes` are (minimum, maximum) where the array is a part of what they belong to.
    """
    low, high = extremes or (image.min(), image.max())
    span = high - low + 1e-5
    return span * ((image - low + 1e-5) / span) ** exponent + low


def warp_image(image: np.ndarray, warp: Warp) -> np.ndarray:
    """`(H, W)` float -> `(H, W)`: affine (bilinear, border 0, the mean of a z-scored scan), then elastic."""
    height, width = image.shape
    matrix = affine_matrix(warp, image.shape)[:2]
    image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR, borderValue=0)
    return image if warp.noise is None else displace(image, *displacement(warp.noise, warp.elastic))


def affine_matrix(warp: Warp, shape: tuple[int, int]) -> np.ndarray:
    """Forward map `(3, 3)` float32 on (x, y, 1): zoom after shear after shift after rotation.

    Rotation and zoom turn about the centre; the shear matrix [[1, -sin a], [0, cos a]] is not centred, as published.
    """
    centre = (shape[1] / 2, shape[0] // 2)
    angle = np.deg2rad(warp.shear)
    rotation = _square(cv2.getRotationMatrix2D(centre, warp.rotation, 1.0))
    shift = np.array([[1, 0, warp.shift[0]], [0, 1, warp.shift[1]], [0, 0, 1]])
    shear = np.array([[1, -np.sin(angle), 0], [0, np.cos(angle), 0], [0, 0, 1]])
    zoom = _square(cv2.getRotationMatrix2D(centre, 0.0, warp.zoom))
    return (zoom @ shear @ shift @ rotation).astype(np.float32)


def displacement(noise: np.ndarray, factor: float, sigma: float = 5.0) -> tuple[np.ndarray, np.ndarray]:
    """Uniform noise `(2, H, W)` in [0, 1) -> displacement of rows and of columns, each `(H, W)` float32, in pixels."""
    smooth = [cv2.GaussianBlur(2 * field - 1, (21, 21), sigma) * factor for field in noise]
    return smooth[1].astype(np.float32), smooth[0].astype(np.float32)


def displace(image: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Sample `image` at (row + rows, column + columns), bilinear, reflecting at the border.

    OpenCV interpolates float32 exactly and float64 in fixed point; the published code uses SciPy, which is exact.
    """
    y, x = np.indices(image.shape, dtype=np.float32)
    return cv2.remap(image.astype(np.float32), x + columns, y + rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)


def _square(matrix: np.ndarray) -> np.ndarray:
    return np.vstack((matrix, (0, 0, 1)))
