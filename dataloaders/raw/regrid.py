"""Any scan on the grid that a checkpoint was trained on, and what was found there back on the scan's own grid.

The voxels are prepared as those of the training scans were (`dataloaders.raw.preparation`). What must be done to a scan
of another orientation, spacing or tilt follows from where its voxels lie in the patient; headers stay true all the way,
so the way back is one interpolation from grid to grid.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from dataloaders.raw.intensities import value_range
from dataloaders.raw.preparation import (
    Plan,
    along_axes,
    clip_and_window,
    interpolate,
    label_onto,
    moved,
    orient,
    prepare,
)
from util.volume import Geometry, Volume

TILT = 10.0  # degrees; a scan that is turned by more is interpolated onto the patient's axes, others keep their slices
AXIAL = 25.0  # degrees; training scans that all are turned by less lie along the patient's axes (CHAOS: up to about 10)


@dataclass(frozen=True)
class Preparation:
    """How the scans that a method was trained on were prepared.

    Attributes:
        plan: intensities, spacing, size.
        towards: signs of left, back, head: where their columns, rows and slices run.
        axial: they lie along the patient's axes; if not (short-axis slices of a heart) the slices of other scans are
            left as they were acquired, too.
        values: `intensities.value_range` of the prepared scans; None if an older version did not note it. It differs
            between folds whose preparation is the same.
    """

    plan: Plan
    towards: tuple[float, float, float]
    axial: bool
    values: tuple[float, ...] | None = field(default=None, compare=False)

    def as_plain(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return asdict(self)

    @staticmethod
    def from_plain(content: Mapping[str, Any]) -> "Preparation":
        """What `as_plain` gave."""
        values = content.get("values")
        values = values if values is None else tuple(values)
        return Preparation(Plan.from_plain(content["plan"]), tuple(content["towards"]), content["axial"], values)


def observe(
    plan: Plan, geometries: Sequence[Geometry], size: int, ranges: Sequence[tuple[float, float]] = ()
) -> Preparation:
    """The preparation behind training scans.

    Args:
        plan: what is known of their preparation; the grid is read from the scans themselves.
        geometries, ranges: of each, the latter its lowest and highest value.
        size: rows and columns that are used of them.
    """
    relative = plan.shrink != 1 or plan.border > 0  # the spacing follows from that of each raw scan
    spacing = None if relative else tuple(np.median([g.spacing for g in geometries], axis=0).tolist())
    towards = tuple(np.where(np.mean([g.axes.diagonal() for g in geometries], axis=0) < 0, -1.0, 1.0).tolist())
    axial = all(_tilt(geometry, towards) < AXIAL for geometry in geometries)
    # the published grids differ from ours by less than a voxel, but their headers lost the crop: they lead nowhere back
    values = value_range(ranges) if ranges else None
    return Preparation(replace(plan, spacing=spacing, size=size, orient=True, published=False), towards, axial, values)


def onto_training_grid(
    image: Volume, label: Volume | None, preparation: Preparation, *, prepared: bool = False
) -> tuple[Volume, Volume]:
    """Image and label `(D, H, W)` as the training scans were, with the geometry they have then.

    Both are given on one grid of any orientation, spacing and tilt; None stands for an empty label. If they are
    `prepared`, intensities are as in the training scans already, and nothing is to be cut off.
    """
    plan, towards = preparation.plan, preparation.towards
    if label is None:
        label = Volume(np.broadcast_to(np.int16(0), image.array.shape), image.geometry)
    if prepared:
        plan = replace(plan, percentile=None, window=None, border=0.0)
    image = Volume(clip_and_window(image.array, plan), image.geometry)
    turn = along_axes if preparation.axial else orient
    image, label = turn(image, towards), turn(label, towards)
    plan = replace(plan, percentile=None, window=None, orient=False, spacing=_spacing(plan, image))
    if preparation.axial and _tilt(image.geometry, towards) > TILT:
        image, label = _straightened(image, label, plan.spacing, towards)
        plan = replace(plan, border=0.0)
    return prepare(image, label, plan)


def onto_own_grid(array: np.ndarray, geometry: Geometry, own: Volume) -> np.ndarray:
    """Probabilities `(D, H, W)` of a prepared scan, linearly interpolated on the grid of the scan itself.

    What was cut off in the plane has probability 0; the outermost slices reach to the end of the scan.
    """
    size, frame = own.array.shape[::-1], ((0, 0), (1, 1), (1, 1))
    return interpolate(np.pad(array, frame), moved(geometry, (-1, -1, 0)), size, own.geometry, edge=True)


def _straightened(image: Volume, label: Volume, spacing: Sequence[float], towards) -> tuple[Volume, Volume]:
    """Both on the patient's axes, in the smallest box of voxels of `spacing` mm that holds them."""
    shape, own = np.array(image.array.shape[::-1]), image.geometry
    corners = np.array(list(itertools.product(*((-0.5, n - 0.5) for n in shape)))) * own.spacing @ own.axes
    corners = (corners + own.origin) * towards  # mm along the new axes
    low, high = corners.min(0), corners.max(0)
    size = np.maximum(1, np.ceil((high - low) / spacing - 1e-6)).astype(int)
    first = ((low + high) / 2 - (size - 1) * spacing / 2) * towards
    grid = Geometry(tuple(spacing), tuple(first.tolist()), tuple(np.diag(towards).ravel().tolist()))
    size = tuple(size.tolist())
    # linear weights would blur away the texture that training scans have, and methods miss it (benchmarks/grids.py)
    low, high = float(image.array.min()), float(image.array.max())
    turned = interpolate(image.array.astype(np.float32), own, size, grid, fill=low, spline=True).clip(low, high)
    return Volume(turned, grid), label_onto(label, size, grid)


def _spacing(plan: Plan, image: Volume) -> tuple[float, float, float]:
    """Spacing in mm of the prepared scan: the plan's, or the one at which what is kept of the plane has its size."""
    if plan.spacing is not None:
        return plan.spacing
    x, y, z = image.geometry.spacing
    columns = image.array.shape[2]
    shrink = (columns - 2 * int(plan.border * columns)) / plan.size
    return (x * shrink, y * shrink, z)


def _tilt(geometry: Geometry, towards: Sequence[float]) -> float:
    """Largest angle in degrees between an axis of the grid and the patient's axis it should run along."""
    return float(np.degrees(np.arccos(np.clip((geometry.axes.diagonal() * towards).min(), -1, 1))))
