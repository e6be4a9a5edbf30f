"""The contact sheet of one segmentation: slices with outlines, quick to draw and to look through."""

import math
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from util.files import whole_file
from util.pictures import as_shown, caption, colour, pixel_size, rgb, upright
from util.volume import Volume

WIDTH = 240  # pixels of a slice
SLICES, COLUMNS = 12, 4


def draw_sheet(file: Path, image: Volume, label: Volume, names: Mapping[int, str]) -> None:
    """Write slices of image and label `(D, H, W)`, evenly from the first to the last that shows one, as a PNG.

    The order of `names` (id -> name) gives the colours.
    """
    from matplotlib.figure import Figure

    shown = slices_shown(label.array)
    slices = as_shown(Volume(image.array[shown], image.geometry))
    labels = upright(label.array[shown], image.geometry)
    x, y = pixel_size(image.geometry)
    height = max(1, round(WIDTH * slices.shape[1] * y / (slices.shape[2] * x)))
    columns = min(COLUMNS, len(shown))
    lines = math.ceil(len(shown) / columns)
    sheet = np.zeros((lines * height, columns * WIDTH, 3), np.uint8)
    for place in range(len(shown)):
        top, left = place // columns * height, place % columns * WIDTH
        part = outlined(slices[place], labels[place], list(names), height)
        sheet[top : top + height, left : left + WIDTH] = part
    # one picture in one axis: one axis per slice would take longer to draw than the scan to segment
    figure = Figure(figsize=(sheet.shape[1] / 100, sheet.shape[0] / 100 + 0.5), dpi=100)
    share = sheet.shape[0] / (sheet.shape[0] + 50)
    axis = figure.add_axes((0, (1 - share) / 2, 1, share))
    axis.imshow(sheet, aspect="auto", interpolation="nearest")
    axis.set_axis_off()
    for place, z in enumerate(shown):
        corner = place % columns * WIDTH + 4, place // columns * height + 14
        axis.text(*corner, f"{z + 1}/{len(label.array)}", color="white", fontsize=7)
    figure.text(0.01, 0.99, caption(file.stem), fontsize=9, va="top")
    for place, name in enumerate(names.values()):
        left = 0.01 + 0.98 * place / len(names)
        figure.text(left, 0.005, caption(name), color=colour(place), fontsize=9, weight="bold")
    with whole_file(file) as temporary:
        figure.savefig(temporary)
    figure.clear()  # its parts refer to each other, and with them large arrays would wait for the collector


def slices_shown(label: np.ndarray) -> list[int]:
    """At most SLICES slices of a label `(D, H, W)`, evenly from the first to the last that shows something."""
    shown = np.flatnonzero(label.any((1, 2)))
    first, last = (shown[0], shown[-1]) if len(shown) else (0, len(label) - 1)
    return np.unique(np.linspace(first, last, SLICES).round().astype(int)).tolist()


def outlined(image: np.ndarray, label: np.ndarray, ids: list[int], height: int) -> np.ndarray:
    """A slice with the outlines of its labels, uint8 `(height, WIDTH, 3)`."""
    plane = cv2.resize(np.ascontiguousarray(image), (WIDTH, height), interpolation=cv2.INTER_LINEAR)
    picture = np.repeat(plane[..., None], 3, axis=2)
    for place, identifier in enumerate(ids):
        mask = cv2.resize((label == identifier).astype(np.uint8), (WIDTH, height), interpolation=cv2.INTER_NEAREST)
        picture[mask != cv2.erode(mask, np.ones((3, 3), np.uint8))] = rgb(colour(place))
    return picture
