"""Scans as radiologists look at them: the front of the body up, the patient's right on the left."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from util.files import whole_file
from util.volume import Geometry, Volume

COLOURS = ("#e41a1c", "#4daf4a", "#377eb8", "#ff7f00", "#984ea3", "#ffff33", "#a65628", "#f781bf")


def caption(name: str) -> str:
    """A name as text in a figure: to Matplotlib $ means a formula, and bytes that are no UTF-8 an error."""
    return name.encode("utf-8", "replace").decode().replace("$", r"\$")


def colour(place: int) -> str:
    """Colour of the organ at a place of a list, as `#rrggbb`."""
    return COLOURS[place % len(COLOURS)]


def rgb(text: str) -> tuple[int, ...]:
    """Red, green and blue, 0 to 255, of `#rrggbb`."""
    return tuple(int(text[at : at + 2], 16) for at in (1, 3, 5))


def as_shown(volume: Volume) -> np.ndarray:
    """Grey values `(D, H, W)` of a volume, uint8, turned upright."""
    return grey(upright(volume.array, volume.geometry))


def grey(array: np.ndarray, whole: np.ndarray | None = None) -> np.ndarray:
    """Intensities as uint8: from the 1st percentile of them, or of the whole scan, black, to the 99.5th, white."""
    low, high = np.percentile(array if whole is None else whole, (1, 99.5))
    return ((array.astype(np.float32) - low) * (255 / max(high - low, 1e-6))).clip(0, 255).astype(np.uint8)


def upright(array: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A view `(..., H, W)` whose rows run to the patient's back and whose columns run to the left, as nearly as can be.

    `array` is the volume of the geometry, or slices of it.
    """
    columns, rows, _ = geometry.axes
    if _swapped(geometry):
        array, columns, rows = array.swapaxes(-2, -1), rows, columns
    return array[..., :: -1 if rows[1] < 0 else 1, :: -1 if columns[0] < 0 else 1]


def pixel_size(geometry: Geometry) -> tuple[float, float]:
    """Width and height in mm of a pixel that is shown upright."""
    x, y, _ = geometry.spacing
    return (y, x) if _swapped(geometry) else (x, y)


def _swapped(geometry: Geometry) -> bool:
    """True if the columns run to the front or the back rather than to a side."""
    columns, rows = np.abs(geometry.axes[:2])
    return columns[1] + rows[0] > columns[0] + rows[1]


def draw_contours(file: Path, title: str, rows: Sequence[tuple[str, np.ndarray, np.ndarray, np.ndarray]]) -> None:
    """Write a PNG of one organ; a row is one slice of a scan: (text, image, truth, prediction), each `(H, W)`."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), 3, squeeze=False)
    for (text, image, truth, prediction), line in zip(rows, axes, strict=True):
        for axis, mask, colour in zip(line, (None, truth, prediction), (None, "lime", "orange"), strict=True):
            axis.imshow(grey(image), cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
            if mask is not None and mask.any():
                axis.contour(mask, levels=[0.5], colors=colour, linewidths=1.2)
        line[0].set_title(caption(text), fontsize=9, loc="left")
        line[1].set_title("truth", fontsize=9, color="green")
        line[2].set_title("prediction", fontsize=9, color="darkorange")
    figure.suptitle(caption(title), fontsize=11)
    with whole_file(file) as temporary:
        figure.savefig(temporary, dpi=110)
