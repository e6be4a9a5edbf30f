"""One picture to look at after a preparation: a slice of every scan with the outlines of its labels."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from util.pictures import WIDTH, Tile, as_shown, colour, draw_tiles, pixel_size, upright
from util.volume import Volume

MANY = 100  # scans; more are drawn half as wide


@dataclass(frozen=True)
class Example:
    """The slice of a scan that shows most organs, upright: image and label `(H, W)`, uint8 and int16; its number;
    width and height of a pixel in mm."""

    image: np.ndarray
    label: np.ndarray
    slice: int
    pixel: tuple[float, float]


def make_example(image: Volume, label: Volume) -> Example:
    """Choose the slice with most organs, and of these the one with most labelled pixels."""
    shows = [(len(np.unique(plane)), np.count_nonzero(plane)) for plane in label.array]
    z = shows.index(max(shows))
    picture = as_shown(Volume(image.array[z], image.geometry))
    return Example(picture, upright(label.array[z], label.geometry).astype(np.int16), z, pixel_size(image.geometry))


def draw_montage(file: Path, title: str, examples: Mapping[int, Example], organs: Mapping[int, str]) -> None:
    """Write the picture, nearly square; `organs` (id -> name) are those with a name, others are called by their id."""
    ids = sorted(set().union(*(np.unique(example.label).tolist() for example in examples.values())) - {0})
    colours = {identifier: colour(place) for place, identifier in enumerate(ids)}
    tiles = []
    for number, example in sorted(examples.items()):
        outlines = [(own, example.label == identifier) for identifier, own in colours.items()]
        tiles.append(Tile(f"{number}, slice {example.slice}", example.image, outlines, example.pixel))
    legend = {organs.get(identifier, f"label {identifier}"): shown for identifier, shown in colours.items()}
    width = WIDTH // 2 if len(tiles) > MANY else WIDTH
    draw_tiles(file, title, tiles, math.ceil(math.sqrt(len(tiles))), legend, width)
