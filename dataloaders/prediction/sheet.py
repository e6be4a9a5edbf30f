"""The contact sheet of one segmentation: slices with outlines, quick to draw and to look through."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from util.pictures import Tile, as_shown, colour, draw_tiles, pixel_size, upright
from util.volume import Volume

SLICES, COLUMNS = 12, 4


def draw_sheet(file: Path, image: Volume, label: Volume, names: Mapping[int, str]) -> None:
    """Write slices of image and label `(D, H, W)`, evenly from the first to the last that shows one, as a PNG.

    The order of `names` (id -> name) gives the colours.
    """
    shown = slices_shown(label.array)
    slices = as_shown(Volume(image.array[shown], image.geometry))
    labels = upright(label.array[shown], image.geometry)
    colours = {identifier: colour(place) for place, identifier in enumerate(names)}
    tiles = []
    for z, plane, ids in zip(shown, slices, labels, strict=True):
        outlines = [(own, ids == identifier) for identifier, own in colours.items()]
        tiles.append(Tile(f"{z + 1}/{len(label.array)}", plane, outlines, pixel_size(image.geometry)))
    legend = {name: colours[identifier] for identifier, name in names.items()}
    draw_tiles(file, file.stem, tiles, min(COLUMNS, len(tiles)), legend)


def slices_shown(label: np.ndarray) -> list[int]:
    """At most SLICES slices of a label `(D, H, W)`, evenly from the first to the last that shows something."""
    shown = np.flatnonzero(label.any((1, 2)))
    first, last = (shown[0], shown[-1]) if len(shown) else (0, len(label) - 1)
    return np.unique(np.linspace(first, last, SLICES).round().astype(int)).tolist()
