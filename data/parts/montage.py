"""One picture to look at after a preparation: a slice of every scan with the outlines of its labels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from util.files import whole_file
from util.pictures import COLOURS, as_shown, caption, upright
from util.volume import Volume


@dataclass(frozen=True)
class Tile:
    """The slice of a scan that shows most organs, upright: image and label `(H, W)`, uint8 and int16; its number."""

    image: np.ndarray
    label: np.ndarray
    slice: int


def make_tile(image: Volume, label: Volume) -> Tile:
    """Choose the slice with most organs, and of these the one with most labelled pixels."""
    shows = [(len(np.unique(plane)), np.count_nonzero(plane)) for plane in label.array]
    z = shows.index(max(shows))
    picture = as_shown(Volume(image.array[z], image.geometry))
    return Tile(picture, upright(label.array[z], label.geometry).astype(np.int16), z)


def draw_montage(file: Path, title: str, tiles: Mapping[int, Tile]) -> None:
    """Write the picture, nearly square."""
    from matplotlib.figure import Figure

    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows + 0.4), dpi=100, layout="constrained")
    figure.suptitle(caption(title))
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    ids = sorted(set().union(*(np.unique(tile.label).tolist() for tile in tiles.values())) - {0})
    for axis in axes:
        axis.axis("off")
    for axis, (number, tile) in zip(axes, sorted(tiles.items()), strict=False):
        axis.imshow(tile.image, cmap="gray", vmin=0, vmax=255)
        for place, identifier in enumerate(ids):
            if (tile.label == identifier).any():
                axis.contour(tile.label == identifier, [0.5], colors=COLOURS[place % len(COLOURS)], linewidths=0.8)
        axis.set_title(f"{number}, slice {tile.slice}", fontsize=8)
    with whole_file(file) as temporary:
        figure.savefig(temporary)
