"""The picture that test.py draws of an organ."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from util.evaluation.metrics import VOTED
from util.names import safe_names
from util.pictures import Tile, draw_tiles, grey, pixel_size, upright
from util.volume import read_volume

PICTURED = 12  # answers in the picture of an organ
COLOURS = {"truth": "#4daf4a", "prediction": "#ff7f00", "voted": "#00bfff"}


def draw_contours(
    folder: Path, rows: Sequence[Mapping[str, Any]], organs: Mapping[str, int], read_scan: Callable[[int], Any]
) -> None:
    """Write ORGAN.png for every organ: a line per answer with the slice where the organ is largest, as it is, with the
    truth, with the prediction, and with what was voted. Of many answers, PICTURED from the worst to the best.

    Args:
        folder: of the run, with its predictions.
        rows: of scores.csv.
        organs: name -> id in the labels.
        read_scan: number -> scan with `image (D, H, W)`, `organ(id)` and `geometry`.
    """
    own = {organ: [row for row in rows if row["organ"] == organ] for organ in dict.fromkeys(r["organ"] for r in rows)}
    chosen = {organ: from_worst_to_best(all_rows) for organ, all_rows in own.items()}
    drawn: dict[str, dict[int, list[Tile]]] = {organ: {} for organ in own}
    numbers = sorted({row["scan"] for some in chosen.values() for row in some})
    for number in tqdm(numbers, unit="scan", desc="drawing"):
        scan = read_scan(number)
        for organ, some in chosen.items():
            for place, row in enumerate(some):
                if row["scan"] == number:
                    drawn[organ][place] = line_of(folder, row, scan, scan.organ(organs[organ]))
    for organ, name in safe_names(own).items():
        title, count = organ, len(own[organ])
        if count > PICTURED:
            title = f"{organ}: {len(chosen[organ])} of {count} answers, from the worst to the best"
        lines = [drawn[organ][place] for place in sorted(drawn[organ])]
        legend = dict(list(COLOURS.items())[: len(lines[0]) - 1])
        draw_tiles(folder / f"{name}.png", title, [tile for line in lines for tile in line], len(lines[0]), legend)


def from_worst_to_best(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All rows of an organ; of more than PICTURED so many that have a Dice, evenly from the lowest to the highest."""
    if len(rows) <= PICTURED:
        return list(rows)
    ranked = sorted((row for row in rows if np.isfinite(row["dice"])), key=lambda row: row["dice"]) or rows
    return [ranked[place] for place in np.unique(np.linspace(0, len(ranked) - 1, PICTURED).round().astype(int))]


def line_of(folder: Path, row: Mapping[str, Any], scan: Any, truth: np.ndarray) -> list[Tile]:
    """The tiles of one answer; `truth`: mask `(D, H, W)`."""
    z, (_, height, width) = int(truth.sum((1, 2)).argmax()), truth.shape
    image, pixel = grey(upright(scan.image[z], scan.geometry)), pixel_size(scan.geometry)
    masks = {"truth": truth[z]}
    for kind, prefix in (("prediction", ""), ("voted", VOTED)):
        if f"{prefix}prediction" in row:
            dice, answer = row[f"{prefix}dice"], read_volume(folder / row[f"{prefix}prediction"]).array
            masks[f"{kind} {dice:.2f}"] = answer[z, :height, :width] > 0
    tiles = [Tile(f"scan {row['scan']} given {row['support']}, slice {z}", image, (), pixel)]
    for colour, (text, mask) in zip(COLOURS.values(), masks.items(), strict=False):
        tiles.append(Tile(text, image, [(colour, upright(mask, scan.geometry))], pixel))
    return tiles
