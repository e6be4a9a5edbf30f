"""Changes of an image that leave its anatomy: gamma, warp, bias field, noise [training 4].

Each change is drawn first, then applied, so it can be repeated, tested against golden numbers and moved to another
image. A new one is a class with `draw` and `image` (and `mask`, if it moves voxels) in SLICES or in crops.VOLUMES, and
its `episode.*` key in config.py.
"""

import functools
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import cv2
import numpy as np

from dataloaders.scans import Scan

cv2.setNumThreads(1)  # loader workers are the parallelism; threads below them only get in each other's way
Extremes = tuple[float, float]  # lowest and highest intensity of what an image is a part of


class Change:
    """What happens to an image `(*)` and its mask."""

    moves = False  # whether voxels change their places

    @classmethod
    def draw(cls, generator: np.random.Generator, scan: Scan, options: Mapping[str, Any]) -> Self | None:
        """A change in the ranges of the `episode.*` options; None if they switch it off."""
        raise NotImplementedError

    def image(self, image: np.ndarray, extremes: Extremes) -> np.ndarray:
        """Float image -> the same after the change."""
        raise NotImplementedError

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Float mask -> the same after the change; it stays 0 or 1."""
        return mask


@dataclass(frozen=True)
class Gamma(Change):
    """Brightness to the power of an exponent."""

    exponent: float

    @classmethod
    def draw(cls, generator: np.random.Generator, scan: Scan, options: Mapping[str, Any]) -> Self:
        """From `episode.gamma`."""
        return cls(generator.uniform(*options["gamma"]))

    def image(self, image: np.ndarray, extremes: Extremes) -> np.ndarray:
        """`r ((x - m + 1e-5) / r) ** g + m` with m the lowest intensity and r the range plus 1e-5."""
        low, high = extremes
        span = high - low + 1e-5
        return span * ((image - low + 1e-5) / span) ** self.exponent + low


@dataclass(frozen=True)
class BiasField(Change):
    """A smooth factor, as the coils of an MR scanner leave it: the exponential of a polynomial of second order.

    Attributes:
        coefficients: of 1, u, v, uv, u^2, v^2, with row u and column v from -1 to 1.
    """

    coefficients: np.ndarray

    @classmethod
    def draw(cls, generator: np.random.Generator, scan: Scan, options: Mapping[str, Any]) -> Self | None:
        """From `episode.bias_field`, the largest coefficient."""
        if not options["bias_field"]:
            return None
        return cls(generator.uniform(-options["bias_field"], options["bias_field"], 6))

    def image(self, image: np.ndarray, extremes: Extremes) -> np.ndarray:
        """The factor works on intensities above the lowest one, which stays."""
        u, v = (np.linspace(-1, 1, side) for side in image.shape[-2:])
        one, of_u, of_v, of_both, of_u2, of_v2 = self.coefficients
        of_rows, of_columns = one + of_u * u + of_u2 * u**2, of_v * v + of_v2 * v**2
        field = np.exp(of_rows[:, None] + of_columns + of_both * np.outer(u, v)).astype(np.float32)
        return (image - extremes[0]) * field + extremes[0]


@dataclass(frozen=True)
class Noise(Change):
    """White Gaussian noise.

    Attributes:
        deviation: in standard deviations of the scan.
        seed: of its values.
    """

    deviation: float
    seed: int

    @classmethod
    def draw(cls, generator: np.random.Generator, scan: Scan, options: Mapping[str, Any]) -> Self | None:
        """From `episode.noise`, the largest deviation."""
        if not options["noise"]:
            return None
        return cls(generator.uniform(0, options["noise"]), int(generator.integers(2**31)))

    def image(self, image: np.ndarray, extremes: Extremes) -> np.ndarray:
        """The scan is z-scored, so its standard deviation is 1."""
        values = np.random.default_rng(self.seed).standard_normal(image.shape, np.float32)
        return image + np.float32(self.deviation) * values


@dataclass(frozen=True)
class Warp(Change):
    """An affine map and an elastic displacement of a slice.

    Attributes:
        rotation: degrees, counter-clockwise.
        shift: `(x, y)` in pixels.
        shear: degrees.
        zoom: isotropic factor about the centre.
        noise: `(2, H, W)` uniform in [0, 1), the raw displacement of columns, then rows; None = no elastic part.
        elastic: factor of the smoothed noise; 10 gives about 0.3 pixels rms.
    """

    rotation: float
    shift: tuple[float, float]
    shear: float
    zoom: float
    noise: np.ndarray | None = None
    elastic: float = 10.0
    moves = True

    @classmethod
    def draw(cls, generator: np.random.Generator, scan: Scan, options: Mapping[str, Any]) -> Self:
        """From `episode.rotation`, `shift`, `shear`, `zoom` and `elastic`."""
        shape, elastic = scan.image.shape[1:], options["elastic"]
        return cls(
            rotation=generator.uniform(-options["rotation"], options["rotation"]),
            shift=tuple(generator.uniform(-options["shift"], options["shift"], size=2)),
            shear=generator.uniform(-options["shear"], options["shear"]),
            zoom=generator.uniform(*options["zoom"]),
            noise=generator.random((2, *shape), dtype=np.float32) if elastic else None,
            elastic=elastic,
        )

    def image(self, image: np.ndarray, extremes: Extremes | None = None) -> np.ndarray:
        """Affine (bilinear, border 0, the mean of a z-scored scan), then elastic."""
        size, flags = image.shape[::-1], cv2.INTER_LINEAR
        image = cv2.warpAffine(image, self.matrix(image.shape)[:2], size, flags=flags, borderValue=0)
        return image if self.noise is None else sample(image, self.displacement, cv2.BORDER_REFLECT)

    def mask(self, mask: np.ndarray) -> np.ndarray:
        """Interpolated, then rounded; 0.5 becomes 0."""
        return np.rint(self.image(mask))

    @functools.cached_property
    def displacement(self) -> np.ndarray:
        """The elastic displacement of rows, then columns, `(2, H, W)` float32, in pixels: one for image and mask."""
        columns, rows = (cv2.GaussianBlur(2 * field - 1, (21, 21), 5.0) * self.elastic for field in self.noise)
        return np.stack((rows, columns)).astype(np.float32)

    def matrix(self, shape: tuple[int, int]) -> np.ndarray:
        """Forward map `(3, 3)` float32 on (x, y, 1): zoom after shear after shift after rotation.

        Rotation and zoom turn about the centre; the shear matrix is not centred, as published.
        """
        centre, angle = (shape[1] / 2, shape[0] // 2), np.deg2rad(self.shear)
        rotation, zoom = (
            np.vstack((cv2.getRotationMatrix2D(centre, *turn), (0, 0, 1)))
            for turn in ((self.rotation, 1.0), (0.0, self.zoom))
        )
        shift = np.array([[1, 0, self.shift[0]], [0, 1, self.shift[1]], [0, 0, 1]])
        shear = np.array([[1, -np.sin(angle), 0], [0, np.cos(angle), 0], [0, 0, 1]])
        return (zoom @ shear @ shift @ rotation).astype(np.float32)


# the order in which changes are drawn and applied, by `episode.augment`; ALPNet's gamma is last
SLICES = {"one": (Gamma, Warp, BiasField, Noise), "both": (Warp, Gamma, BiasField, Noise)}


def draw_changes(
    generator: np.random.Generator,
    scan: Scan,
    options: Mapping[str, Any],
    kinds: Sequence[type[Change]],
    queries: int = 1,
) -> list[tuple[Change, ...]]:
    """Changes of the support and of each query, by the `episode.*` options.

    With `augment` "one" every change is made to the support or to the queries, which are changed alike (ADNet); with
    "both" the images are changed independently (ALPNet [alpnet 6]).
    """

    def draw() -> list[Change]:
        found = [kind.draw(generator, scan, options) for kind in kinds]
        return [change for change in found if change is not None]

    if options["augment"] == "both":
        return [tuple(draw()) for _ in range(1 + queries)]
    changes = draw()
    on_query = generator.random(len(changes)) > 0.5
    support, query = (tuple(itertools.compress(changes, here)) for here in (~on_query, on_query))
    return [support, *[query] * queries]


def apply_changes(changes: Sequence[Change], image: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Image `(H, W)` and mask `(H, W)`, both float -> the same after the changes; the mask stays 0 or 1."""
    for change in changes:
        image, mask = change.image(image, (image.min(), image.max())), change.mask(mask)
    return image, mask


def sample(image: np.ndarray, displacement: np.ndarray, border: int) -> np.ndarray:
    """`image` `(H, W)` at every pixel plus its displacement `(2, H, W)` (rows, columns), bilinear.

    `border` is OpenCV's. It interpolates float32 exactly and float64 in fixed point; the published code uses SciPy,
    which is exact.
    """
    rows, columns = np.indices(image.shape, dtype=np.float32) + displacement.astype(np.float32)
    return cv2.remap(image.astype(np.float32), columns, rows, cv2.INTER_LINEAR, borderMode=border)
