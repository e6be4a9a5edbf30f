"""The pictures of the pages, drawn from the phantom: docs/idea.png, docs/episode.png and, if `odds` ran, docs/odds.png.

    bash script/demo.sh && .venv/bin/python benchmarks/pictures.py runs/odds_PHANTOM_fold0/3 --organ "right kidney"

Takes the run of a test (with scores.csv and predictions/) on the phantom; no patient is shown.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import config
import models
from dataloaders.augmentation import SLICES, apply_changes, draw_changes
from dataloaders.pairings import slices_showing, support_indices
from dataloaders.samplers import NeighboursSampler
from dataloaders.scans import Scan, read_scan
from util import checkpoints
from util.commands import parser
from util.pictures import grey, upright
from util.tables import read_csv
from util.volume import read_volume

ROOT = Path(__file__).resolve().parents[1]
DATASET = config.DATASETS["PHANTOM"]
TRUTH, ORGAN = "#4daf4a", "#ff7f00"
AUGMENTATION = dict(augment="one", gamma=(0.5, 1.5), rotation=5.0, shift=5.0, shear=5.0, zoom=(0.9, 1.2), elastic=10.0,
                    bias_field=0.0, noise=0.0)  # fmt: skip


def draw(file: Path, panels: list[tuple[str, np.ndarray, list[tuple[np.ndarray, str]]]]) -> None:
    """One row of panels: title, image `(H, W)`, and masks `(H, W)` with their colours."""
    figure = Figure(figsize=(2.6 * len(panels), 2.9), dpi=110, layout="constrained")
    for axis, (title, image, masks) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        axis.imshow(grey(image), cmap="gray", vmin=0, vmax=255)
        axis.set_axis_off()
        axis.set_title(title, fontsize=9)
        for mask, colour in masks:
            if mask.any():
                axis.contour(mask, [0.5], colors=colour, linewidths=1.4)
    file.parent.mkdir(exist_ok=True)
    figure.savefig(file)
    print(file)


def median_row(run: Path, organ: str) -> dict:
    """The row of scores.csv with the organ's median Dice."""
    rows = [row for row in read_csv(run / "scores.csv") if row["organ"] == organ]
    return sorted(rows, key=lambda row: float(row["dice"]))[len(rows) // 2]


def read_task(row: dict, root: Path) -> tuple[Scan, Scan, int, int, int]:
    """Support and query of a row, its organ's label id, the annotated slice, and the query's slice that shows most."""
    support, query = (read_scan(DATASET, root, int(row[key])) for key in ("support", "scan"))
    identifier = DATASET.organs[row["organ"]]
    shown = slices_showing(support.label, identifier)
    annotated = int(shown[support_indices(len(shown), 3)[1]])
    return support, query, identifier, annotated, int(query.organ(identifier).sum((1, 2)).argmax())


def draw_idea(run: Path, row: dict, root: Path) -> None:
    """Annotated slice, query slice, prediction and truth of the row's query."""
    support, query, identifier, annotated, z = read_task(row, root)
    found = read_volume(run / row["voted_prediction"]).array > 0
    given = upright(support.organ(identifier)[annotated], support.geometry)
    image, truth, answer = (upright(a[z], query.geometry) for a in (query.image, query.organ(identifier), found))
    panels = [
        ("one annotated slice", upright(support.image[annotated], support.geometry), [(given, ORGAN)]),
        ("a slice of another scan", image, []),
        (
            f"answer (orange) and truth, Dice {float(row['voted_dice']):.2f}",
            image,
            [(truth, TRUTH), (answer, ORGAN)],
        ),
    ]
    draw(ROOT / "docs/idea.png", panels)


def draw_odds(row: dict, root: Path) -> None:
    """What `odds` computes on the way: the odds of both scales, and the answer that the decoder makes of them."""
    path = Path(row["checkpoint"])
    method = models.restore(checkpoints.load_checkpoint(path), path).method
    support, query, identifier, annotated, z = read_task(row, root)
    mask, truth = support.organ(identifier)[annotated], query.organ(identifier)[z]
    with torch.inference_mode():
        images = (torch.from_numpy(array)[None, None] for array in (support.image[annotated], query.image[z]))
        features = [tuple(f[None] for f in method.encode(image)) for image in images]
        answer, odds = method.answer(features[0], torch.from_numpy(mask)[None, None].float(), features[1])
        maps = [F.interpolate(found, size=truth.shape, mode="nearest")[0, 0].numpy() for found in odds]
    panels = [
        ("one annotated slice", support.image[annotated], [(mask, ORGAN)]),
        ("a slice of another scan", query.image[z], []),
        (f"log odds, cells of {truth.shape[0] // odds[0].shape[-1]} pixels", maps[0], [(truth, TRUTH)]),
        (f"log odds, cells of {truth.shape[0] // odds[1].shape[-1]} pixels", maps[1], [(truth, TRUTH)]),
        ("decoded (orange) and truth", query.image[z], [(truth, TRUTH), (answer[0, 0].numpy() > 0, ORGAN)]),
    ]
    turned = [(t, upright(i, query.geometry), [(upright(m, query.geometry), c) for m, c in ms]) for t, i, ms in panels]
    draw(ROOT / "docs/odds.png", turned)


def draw_episode(root: Path, number: int) -> None:
    """A training task: one supervoxel on two neighbouring slices, before and after the augmentation."""
    scan = read_scan(DATASET, root, number, labels=False, segments="supervoxels")
    generator = np.random.default_rng(7)
    choice = NeighboursSampler([scan.areas], min_size=800).draw(generator)
    changes = draw_changes(generator, scan, AUGMENTATION, SLICES["one"])
    panels = []
    for name, z, own in zip(("support", "query"), (choice.support_slice, *choice.query_slices), changes, strict=True):
        image, mask = scan.image[z], (scan.segments[z] == choice.segment).astype(np.float32)
        changed, moved = apply_changes(own, image, mask)
        said = " and ".join(type(change).__name__.lower() for change in own) or "as it is"
        for title, views in ((f"{name}: slice {z}", (image, mask)), (f"{name}: {said}", (changed, moved))):
            shown, outline = (upright(view, scan.geometry) for view in views)
            panels.append((title, shown, [(outline, ORGAN)]))
    draw(ROOT / "docs/episode.png", panels)


def main() -> None:
    """Command line."""
    command = parser(__doc__)
    command.add_argument("run", type=Path, help="folder of a test on the phantom")
    command.add_argument("--data-root", type=Path, default=Path("data"), help="folder that holds PHANTOM/")
    command.add_argument("--organ", default="spleen")
    options = command.parse_args()
    row = median_row(options.run, options.organ)
    draw_idea(options.run, row, options.data_root)
    if row["method"] == "odds":
        draw_odds(row, options.data_root)
    draw_episode(options.data_root, DATASET.scans(options.data_root)[-1])


if __name__ == "__main__":
    main()
