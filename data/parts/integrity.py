"""What can be wrong with one prepared scan: image, label and supervoxels, each alone and against each other."""

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path

import numpy as np

from util.dataset import Dataset
from util.errors import UserError
from util.nifti import by
from util.volume import Geometry, Volume, read_volume

PARTS = 3  # slices an organ needs to be tested in parts (test.parts)


@dataclass
class Findings:
    """A scan's facts and faults.

    Attributes:
        number: of the scan.
        facts: what the table shows of it.
        errors, warnings: sentences without the scan's number, so that those of many scans can be told as one.
        label: `(D, 1, K)`, for every slice the ids it shows: as good as the label where only presence is asked for.
        size: rows and columns that are used.
        directions: signs of the axes nearest to columns, rows and slices.
        supervoxels: True if the file is there.
    """

    number: int
    facts: dict[str, object] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    label: np.ndarray | None = None
    size: tuple[int, int] | None = None
    directions: str = ""
    supervoxels: bool = False


def check_scan(dataset: Dataset, root: Path, number: int) -> Findings:
    """Read one scan and note everything that is wrong with it; nothing is raised."""
    found = Findings(number)
    try:
        image = read_volume(dataset.image_file(root, number))
    except UserError as error:
        found.errors.append(str(error))
        return found
    _check_image(image, dataset, found)
    for check, file in (
        (_check_label, dataset.label_file(root, number)),
        (_check_supervoxels, dataset.segment_file(root, number)),
    ):
        try:
            check(file, image, dataset, found)
        except UserError as error:
            found.errors.append(str(error))
    return found


def _check_image(image: Volume, dataset: Dataset, found: Findings) -> None:
    depth, rows, columns = image.array.shape
    found.size = min(rows, dataset.size or rows), min(columns, dataset.size or columns)
    found.facts = {
        "slices": depth,
        "pixels": f"{rows} x {columns}",
        "spacing": by(image.geometry.spacing),
        "values": f"{image.array.min():.4g} to {image.array.max():.4g}",
        "blank": int((image.array.max((1, 2)) == image.array.min((1, 2))).sum()),
    }
    if image.array.min() == image.array.max():
        found.errors.append("the image is constant")
    found.errors += [f"the image's header: {doubt}" for doubt in image.doubts]
    if image.geometry.spacing == (1.0, 1.0, 1.0):
        found.warnings.append("the image's header has unit spacing: was its geometry lost?")
    found.directions = direction_letters(image.geometry)


def direction_letters(geometry: Geometry) -> str:
    """Where columns, rows and slices run to, such as LAS: left, front, head."""
    letters = (("R", "L"), ("A", "P"), ("I", "S"))
    return "".join(letters[np.abs(axis).argmax()][int(axis[np.abs(axis).argmax()] > 0)] for axis in geometry.axes)


def _check_label(file: Path, image: Volume, dataset: Dataset, found: Findings) -> None:
    label = read_volume(file)
    if label.array.shape != image.array.shape:
        raise UserError(f"{file}: has shape {label.array.shape}, its image {image.array.shape}")
    found.errors += [f"the label's header: {doubt}" for doubt in label.doubts]
    if not label.geometry.matches(image.geometry):
        found.errors.append("the label lies on another grid than the image (spacing, origin or direction)")
    ids = np.unique(label.array)
    if not np.array_equal(ids, np.rint(ids)):
        raise UserError(f"{file}: holds fractions; it was interpolated as if it were an image")
    known = {0, *dataset.organs.values(), *dataset.others.values()}
    strange = [int(i) for i in ids if i not in known]
    if strange:
        found.errors.append(f"the label holds the id(s) {strange}; config.py names {sorted(known - {0})}")
    shown = np.stack([(label.array == i).any((1, 2)) for i in dataset.organs.values()])
    for name, slices in zip(dataset.organs, shown.sum(1).tolist(), strict=True):
        found.facts[name] = slices
        if not slices:
            found.warnings.append(f"{name} is not there")
        elif slices < PARTS:
            found.warnings.append(f"{name} is on {slices} slices, testing in parts needs {PARTS}")
    _check_sides(label, dataset, found)
    ids = np.array(list(dataset.organs.values()))
    found.label = (shown * ids[:, None]).T[:, None, :]


def _check_sides(label: Volume, dataset: Dataset, found: Findings) -> None:
    """A right kidney left of the left one betrays a flip that the header does not know of."""
    names = ("right kidney", "left kidney")
    if not all(found.facts.get(name) for name in names):
        return
    middles = [np.argwhere(label.array == dataset.organs[name]).mean(0)[::-1] for name in names]
    apart = np.subtract(*middles) * label.geometry.spacing  # from left to right, in mm along the array's axes
    if (apart @ label.geometry.axes)[0] > 0:  # x grows to the patient's left
        found.errors.append("right and left kidney are swapped, or the scan is mirrored against its header")


def _check_supervoxels(file: Path, image: Volume, dataset: Dataset, found: Findings) -> None:
    if not file.is_file():
        return
    found.supervoxels = True
    volume = read_volume(file)
    if volume.array.shape != image.array.shape:
        raise UserError(f"{file}: has shape {volume.array.shape}, its image {image.array.shape}; make it again")
    outside = volume.array.min() < 0 or volume.array.max() > volume.array.size
    if outside or not np.array_equal(volume.array, np.rint(volume.array)):
        raise UserError(f"{file}: holds negative ids, more ids than voxels, or fractions; make it again")
    if volume.geometry.spacing == (1.0, 1.0, 1.0) != image.geometry.spacing:
        found.warnings.append("the supervoxels' header has unit spacing, as published files have")
    elif not volume.geometry.matches(image.geometry):
        found.errors.append("the supervoxels lie on another grid than the image (spacing, origin or direction)")
    segments = volume.array.astype(np.int64)
    found.facts["supervoxels"] = len(np.unique(segments[segments > 0]))
    if not segments.any():
        found.errors.append("there is no supervoxel at all")
        return
    shares = explained(image.array.astype(np.float64), segments)
    found.facts["explained"] = f"{shares[1, 1, 1]:.2f}"
    best = max(shares, key=shares.__getitem__)
    if shares[best] > shares[1, 1, 1] + 1e-3:
        axes = [name for name, sign in zip(("slices", "rows", "columns"), best, strict=True) if sign < 0]
        found.errors.append(f"the supervoxels fit the image better with reversed {' and '.join(axes)}; make them again")


def explained(image: np.ndarray, segments: np.ndarray) -> dict[tuple[int, ...], float]:
    """Share of the variance of an image that lies between segments, 0..1: high if their borders are the image's.

    Args:
        image, segments: `(D, H, W)`.

    Returns:
        signs for slices, rows, columns, of which -1 reverses that axis -> share.
    """
    ids, mean, variance = segments.ravel(), image.mean(), image.var()
    counts, shares = np.bincount(ids).clip(min=1), {}
    for flips in product((1, -1), repeat=3):
        sums = np.bincount(ids, image[tuple(slice(None, None, sign) for sign in flips)].ravel())
        between = (sums**2 / counts).sum() / image.size - mean**2
        shares[flips] = float(between / variance) if variance else 0.0
    return shares
