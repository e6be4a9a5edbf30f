"""Raw scans on the grid of the experiments: orientation, intensities, spacing, crop [alpnet 3].

`prepare` does to one scan what its `Plan` says; the steps below it are functions of their own. With `published` they do
what the published preparation did, blank samples included; without, every sample lies in the scan and headers stay
true.
"""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import SimpleITK as sitk
from scipy import ndimage

from util.volume import Geometry, Volume

AS_STORED, SWAPPED = (0, 1, 2), (1, 0, 2)  # orders of the axes x, y, z
LEFT_FRONT_HEAD = (1.0, -1.0, 1.0)  # columns run to the left, rows to the front, slices to the head: as published


@dataclass(frozen=True)
class Plan:
    """Everything the prepared voxels depend on.

    Attributes:
        spacing: mm `(x, y, z)` of the result; None = the scan's, times `shrink` in the plane.
        size: rows and columns of the result; None = as they come.
        percentile: intensities above it are set to it; None leaves them.
        window: intensities `(low, high)` that become 0 and 255; None leaves them.
        border: share of the rows and columns that is cut off at each side.
        shrink: factor on the in-plane spacing, if `spacing` is None.
        orient: store rows and columns of all scans the same way round.
        published: as the published preparation did it.
    """

    spacing: tuple[float, float, float] | None = None
    size: int | None = 256
    percentile: float | None = None
    window: tuple[float, float] | None = None
    border: float = 0.0
    shrink: float = 1.0
    orient: bool = True
    published: bool = False

    @staticmethod
    def from_plain(values: Mapping[str, Any]) -> "Plan":
        """The plan that was written as plain values, with whatever else stands beside them.

        Raises:
            KeyError: a value is missing.
        """
        values = {"published": values.get("legacy", False), **values}  # as older records call it
        own = {field.name: values[field.name] for field in fields(Plan)}
        return Plan(**{name: tuple(value) if isinstance(value, list) else value for name, value in own.items()})


def prepare(image: Volume, label: Volume, plan: Plan) -> tuple[Volume, Volume]:
    """One scan `(D, H, W)` and its label on the grid of the plan; the label takes the image's geometry.

    Returns:
        image (its own integers or float32; float64 in published) and label (int16; float32 in published).
    """
    label = Volume(label.array, image.geometry)
    if plan.orient:
        image, label = orient(image), orient(label)
    image = Volume(clip_and_window(image.array, plan), image.geometry)
    if plan.border:
        margin = int(plan.border * image.array.shape[2])
        image, label = (crop_border(volume, margin, plan.published) for volume in (image, label))
    x, y, z = image.geometry.spacing
    spacing = plan.spacing or (x * plan.shrink, y * plan.shrink, z)
    image, label = resample(image, spacing, plan.published), resample_label(label, spacing, plan.published)
    if plan.size is not None:
        image = crop_or_pad(image, plan.size, image.array.min(), plan.published)
        label = crop_or_pad(label, plan.size, 0, plan.published)
    if plan.published:
        image = Volume(image.array.astype(np.float64), image.geometry)
        label = Volume(label.array.astype(np.float32), image.geometry)
    return image, label


def clip_and_window(array: np.ndarray, plan: Plan) -> np.ndarray:
    """What the plan does to the values of a scan, any shape: brightest cut, window."""
    if array.dtype == np.float64:
        array = array.astype(np.float32)
    if plan.percentile is not None:
        array = cut_bright(array, plan.percentile)
    if plan.window is not None:
        array = window(array, *plan.window, own_range=plan.published)
    return array


def cut_bright(array: np.ndarray, percentile: float = 99.5) -> np.ndarray:
    """Set what lies above the percentile of all voxels to it; of integers the percentile is truncated [alpnet 3.3]."""
    limit = np.percentile(array, percentile).astype(array.dtype)
    return np.minimum(array, limit)


def window(array: np.ndarray, low: float, high: float, own_range: bool = False) -> np.ndarray:
    """Clip intensities of any shape to `[low, high]` and stretch these to 0..255, float32 [alpnet 3.4].

    With `own_range` what is left after clipping is stretched, as published: a scan without air then looks different
    from the others.
    """
    clipped = array.astype(np.float32)  # first: integers would be clipped as float64
    clipped.clip(low, high, out=clipped)
    if own_range:
        low, high = float(clipped.min()), float(clipped.max())
    clipped -= np.float32(low)
    clipped *= np.float32(255 / max(high - low, 1e-6))
    return clipped


def orient(
    volume: Volume,
    towards: Sequence[float] = LEFT_FRONT_HEAD,
    orders: Iterable[tuple[int, ...]] = (AS_STORED, SWAPPED),
) -> Volume:
    """Swap and flip rows and columns, and reverse slices, so that they run `towards` as nearly as they can.

    Nothing is interpolated and every voxel keeps its place in the patient. Slices stay slices: an oblique plane is
    stored the best way round that it has.

    `towards` are signs of left (columns), back (rows), head (slices); `orders` of the axes may be chosen.
    """
    axes = volume.geometry.axes
    order = max(orders, key=lambda order: np.abs(axes[order, AS_STORED]).sum())
    return _stored(volume, order, np.where(axes[order, AS_STORED] * towards < 0, -1, 1).tolist())


def along_axes(volume: Volume, towards: Sequence[float]) -> Volume:
    """As `orient`, with every axis along the patient's own as nearly as can be: slices may become rows."""
    return orient(volume, towards, itertools.permutations(AS_STORED))


def reordered(volume: Volume, swap: bool, signs: Sequence[int]) -> Volume:
    """The same volume with rows and columns swapped, then axes x, y, z reversed if the sign is -1."""
    return _stored(volume, SWAPPED if swap else AS_STORED, signs)


def _stored(volume: Volume, order: Sequence[int], signs: Sequence[int]) -> Volume:
    """The same volume stored another way: axes x, y, z in this order, then reversed if the sign is -1.

    The array is a view: CT scans are large.
    """
    order = list(order)
    array = volume.array.transpose([2 - order[2 - k] for k in range(3)])
    axes, spacing = volume.geometry.axes[order], np.array(volume.geometry.spacing)[order]
    last = (np.array(array.shape[::-1]) - 1) * (np.array(signs) < 0)  # the voxel that becomes the first
    origin = np.array(volume.geometry.origin) + (last * spacing) @ axes
    direction = (axes * np.reshape(signs, (3, 1))).T
    turned = Geometry(tuple(spacing.tolist()), tuple(origin.tolist()), tuple(direction.ravel().tolist()))
    return Volume(array[tuple(slice(None, None, sign) for sign in signs[::-1])], turned)


def output_size(size: int, spacing: float, target: float, published: bool = False) -> int:
    """Samples along one axis: rounded, at least one; published: floor + 1, the last may be blank [alpnet 3.2]."""
    samples = size * spacing / target
    return int(samples + 1) if published else max(1, math.floor(samples + 0.5))


def target_grid(
    shape: tuple[int, ...], geometry: Geometry, spacing: tuple[float, ...], published: bool = False
) -> tuple[tuple[int, ...], Geometry]:
    """Size `(x, y, z)` and geometry after resampling to `spacing` mm.

    Published: the first voxels' centres coincide, so samples may lie behind the scan's end. Here the middles of both
    grids coincide, so that the outermost samples lie within half a new voxel of the scan's border, inside it.
    """
    old = np.array(shape[::-1])
    size = tuple(output_size(*values, published) for values in zip(shape[::-1], geometry.spacing, spacing, strict=True))
    if published:
        return size, replace(geometry, spacing=tuple(spacing))
    shift = ((old - 1) * geometry.spacing - (np.array(size) - 1) * spacing) / 2
    return size, Geometry(tuple(spacing), _place(geometry, shift), geometry.direction)


def resample(volume: Volume, spacing: tuple[float, ...], published: bool = False) -> Volume:
    """Linear interpolation to `spacing` mm `(x, y, z)`; integers stay integers, outside the scan is 0."""
    size, grid = target_grid(volume.array.shape, volume.geometry, spacing, published)
    return Volume(interpolate(volume.array, volume.geometry, size, grid), grid)


def resample_label(volume: Volume, spacing: tuple[float, ...], published: bool = False) -> Volume:
    """Labels to `spacing` mm, int16: each id is interpolated as a share of the voxel, and the largest share wins.

    Published: an id wins with more than half of the voxel, and if rounding lets two do so, the larger id.
    """
    return label_onto(volume, *target_grid(volume.array.shape, volume.geometry, spacing, published), published)


def label_onto(volume: Volume, size: tuple[int, ...], grid: Geometry, published: bool = False) -> Volume:
    """The same onto any grid of `size` `(x, y, z)`."""
    result = np.zeros(size[::-1], np.int16)
    best, background = np.zeros(result.shape, np.float32), np.ones(result.shape, np.float32)
    for identifier in np.unique(volume.array[volume.array > 0]).astype(int).tolist():
        share = interpolate(*_mask_alone(volume, identifier), size, grid)
        wins = np.rint(share) == 1 if published else share > best
        result[wins] = identifier
        np.maximum(best, share, out=best)
        background -= share
    if not published:
        result[background >= best] = 0
    return Volume(result, grid)


def _mask_alone(volume: Volume, identifier: int) -> tuple[np.ndarray, Geometry]:
    """The box around an id and one voxel more as a float32 mask: all that interpolation needs, and little memory."""
    mask = volume.array == identifier
    (around,) = ndimage.find_objects(mask.view(np.uint8))
    box = tuple(slice(max(part.start - 1, 0), part.stop + 1) for part in around)
    first = tuple(part.start for part in box[::-1])
    return mask[box].astype(np.float32), moved(volume.geometry, first)


def interpolate(
    array: np.ndarray,
    geometry: Geometry,
    size: tuple[int, ...],
    grid: Geometry,
    *,
    fill: float = 0,
    edge: bool = False,
    spline: bool = False,
) -> np.ndarray:
    """Linear interpolation of `(D, H, W)` onto any grid of `size` `(x, y, z)`, or by cubic splines.

    Outside the scan is `fill`, or with `edge` its nearest voxel; integers stay integers.
    """
    if size == array.shape[::-1] and grid.matches(geometry, 1e-9):
        return array
    image = sitk.GetImageFromArray(array)
    del array  # the image is a copy; CT scans are large
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    resampler = sitk.ResampleImageFilter()
    resampler.SetNumberOfThreads(1)  # scans are worked on side by side
    resampler.SetInterpolator(sitk.sitkBSpline if spline else sitk.sitkLinear)
    resampler.SetDefaultPixelValue(float(fill))
    resampler.SetUseNearestNeighborExtrapolator(edge)
    resampler.SetSize(size)
    resampler.SetOutputSpacing(grid.spacing)
    resampler.SetOutputOrigin(grid.origin)
    resampler.SetOutputDirection(grid.direction)
    return sitk.GetArrayFromImage(resampler.Execute(image))


def crop_border(volume: Volume, margin: int, published: bool = False) -> Volume:
    """Cut `margin` pixels off at each side of the plane; published leaves the origin where it was [alpnet 3.4]."""
    inside = volume.array[:, margin : volume.array.shape[1] - margin, margin : volume.array.shape[2] - margin]
    return Volume(inside, volume.geometry if published else moved(volume.geometry, (margin, margin, 0)))


def crop_or_pad(volume: Volume, size: int | tuple[int, int], fill: float, published: bool = False) -> Volume:
    """`size` rows and columns about the middle n // 2 (an odd size has one more before it); `fill` where the scan ends.

    Published leaves the origin where it was [alpnet 3.3].
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    depth, height, width = volume.array.shape
    top, left = height // 2 - (rows + 1) // 2, width // 2 - (columns + 1) // 2
    result = np.full((depth, rows, columns), fill, volume.array.dtype)
    source = tuple(
        slice(max(a, 0), max(min(a + n, end), 0)) for a, n, end in ((top, rows, height), (left, columns, width))
    )
    target = tuple(slice(part.start - a, part.stop - a) for part, a in zip(source, (top, left), strict=True))
    result[:, *target] = volume.array[:, *source]
    return Volume(result, volume.geometry if published else moved(volume.geometry, (left, top, 0)))


def moved(geometry: Geometry, voxels: tuple[float, ...]) -> Geometry:
    """The same grid counted from another voxel `(x, y, z)`."""
    return replace(geometry, origin=_place(geometry, np.multiply(voxels, geometry.spacing)))


def _place(geometry: Geometry, millimetres: np.ndarray) -> tuple[float, ...]:
    """World position of a point given in mm along the grid's axes from its first voxel."""
    return tuple((np.array(geometry.origin) + geometry.axes.T @ millimetres).tolist())
