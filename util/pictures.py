"""Scans as radiologists look at them: the front of the body up, the patient's right on the left."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from util.files import whole_file
from util.volume import Geometry, Volume

COLOURS = ("#e41a1c", "#4daf4a", "#377eb8", "#ff7f00", "#984ea3", "#ffff33", "#a65628", "#f781bf")
WIDTH = 240  # pixels of a tile; its height follows from the slice and is at most twice as much
MARGIN, LETTER = 25, 9  # pixels: of the title above and of a line of the legend below; of a letter's width, at most


@dataclass(frozen=True)
class Tile:
    """A slice to be drawn, upright.

    Attributes:
        text: in its corner.
        image: `(H, W)`, uint8.
        outlines: colours `#rrggbb` with the masks `(H, W)` that are outlined in them; later ones lie on top.
        pixel: width and height of a pixel in mm.
    """

    text: str
    image: np.ndarray
    outlines: Sequence[tuple[str, np.ndarray]] = ()
    pixel: tuple[float, float] = (1.0, 1.0)

    def drawn(self, width: int) -> np.ndarray:
        """The slice with its outlines, uint8 `(height, width, 3)`."""
        rows, columns = self.image.shape
        across, down = columns * self.pixel[0], rows * self.pixel[1]
        scale = width / max(across, down / 2)
        size = max(1, round(across * scale)), max(1, round(down * scale))
        picture = np.repeat(cv2.resize(np.ascontiguousarray(self.image), size)[..., None], 3, axis=2)
        for text, mask in self.outlines:
            enlarged = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
            picture[enlarged != cv2.erode(enlarged, np.ones((3, 3), np.uint8))] = rgb(text)
        margin = width - size[0]
        return np.pad(picture, ((0, 0), (margin // 2, margin - margin // 2), (0, 0)))


def draw_tiles(
    file: Path, title: str, tiles: Sequence[Tile], columns: int, legend: Mapping[str, str], width: int = WIDTH
) -> None:
    """Write tiles line by line as a PNG, with a title above and a legend, name -> colour, below.

    They are one picture in one axis: one axis for each would take longer to draw than most scans to segment.
    """
    from matplotlib.figure import Figure

    pictures = [tile.drawn(width) for tile in tiles]
    height = max(len(picture) for picture in pictures)
    sheet = np.zeros((math.ceil(len(tiles) / columns) * height, columns * width, 3), np.uint8)
    places = legend_places(legend, sheet.shape[1])
    lines = 1 + max((line for line, _ in places.values()), default=0)
    whole = MARGIN + sheet.shape[0] + lines * MARGIN
    figure = Figure(figsize=(sheet.shape[1] / 100, whole / 100), dpi=100)
    axis = figure.add_axes((0, lines * MARGIN / whole, 1, sheet.shape[0] / whole))
    axis.set_axis_off()
    for place, (tile, picture) in enumerate(zip(tiles, pictures, strict=True)):
        top, left = place // columns * height, place % columns * width
        below = top + (height - len(picture)) // 2
        sheet[below : below + len(picture), left : left + width] = picture
        axis.text(left + 4, top + 4, caption(tile.text), color="white", fontsize=7, va="top", clip_on=True)
    axis.imshow(sheet, aspect="auto", interpolation="nearest")
    figure.text(0.01, 1 - 6 / whole, caption(title), fontsize=9, va="top")
    for name, (line, left) in places.items():
        below = (lines - line) * MARGIN - MARGIN + 6
        figure.text(left / sheet.shape[1], below / whole, caption(name), color=legend[name], fontsize=9, weight="bold")
    with whole_file(file) as temporary:
        figure.savefig(temporary)
    figure.clear()  # its parts refer to each other, and with them large arrays would wait for the collector


def legend_places(names: Iterable[str], width: int) -> dict[str, tuple[int, int]]:
    """Line and first pixel of every name, in as many lines as the width asks for."""
    places, line, left = {}, 0, 6
    for name in names:
        if left > 6 and left + LETTER * len(name) > width:
            line, left = line + 1, 6
        places[name] = line, left
        left += LETTER * (len(name) + 2)
    return places


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
