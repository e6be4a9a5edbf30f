"""What registration is worth between neighbouring slices, on scans it never saw.

    python benchmarks/registration.py RUN [--data-root data] [--picture carried.png]

RUN is a training run of method=registration. For slice distances 1, 2, 3: the mean squared difference of the images
without and with the warp, and the Dice of true organs of one slice, taken to the other, with the organs there: copied,
chained along the flows of all slices between (as in training), along these composed, and along one direct flow.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import pandas
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import config
import models
from dataloaders.augmentation import sample
from dataloaders.flows import Carrier, flows_of, offsets
from dataloaders.scans import Scan, read_scan
from util import checkpoints
from util.commands import parser
from util.dataset import choose_fold
from util.evaluation.metrics import overlap
from util.files import whole_file
from util.pictures import as_shown, upright
from util.runs import folders
from util.tables import text_table
from util.volume import Volume

DISTANCES = (1, 2, 3)


class Carriers:
    """The ways from slice to slice of one scan."""

    def __init__(self, scan: Scan, network: torch.nn.Module) -> None:
        self.table = flows_of(scan.image, max(DISTANCES), network.register)
        self.direct, self.chained = Carrier([self.table], "direct"), Carrier([self.table], "chained")

    def carried(self, mask: np.ndarray, source: int, target: int) -> dict[str, np.ndarray]:
        """A mask `(H, W)` as every way takes it to the target."""
        return {
            "copied": mask,
            "chained": self.chained.carry(0, mask, source, target),
            "composed": sample(mask, self.composed(source, target), cv2.BORDER_CONSTANT) >= 0.5,
            "direct": self.direct.carry(0, mask, source, target),
        }

    def composed(self, source: int, target: int) -> np.ndarray:
        """The flows of all slices between as one `(2, H, W)`, so that a mask is sampled once."""
        step = 1 if target > source else -1
        row = offsets(max(DISTANCES)).index(step)
        total = np.zeros(self.table.shape[2:], np.float32)
        for z in range(source, target, step):
            last = self.table[row, z].astype(np.float32)
            total = last + np.stack([sample(field, last, cv2.BORDER_REPLICATE) for field in total])
        return total

    def moved(self, image: np.ndarray, source: int, target: int) -> np.ndarray:
        """The source slice warped directly to the target."""
        row = offsets(max(DISTANCES)).index(target - source)
        return sample(image, self.table[row, source], cv2.BORDER_CONSTANT)


def compare(scan: Scan, ways: Carriers, organs: dict[str, int]) -> list[tuple[int, str, float]]:
    """Rows (distance, what, value) for every pair of slices and everything that was carried between them."""
    rows = []
    for distance in DISTANCES:
        for source in range(len(scan.image)):
            for target in (source - distance, source + distance):
                if 0 <= target < len(scan.image):
                    rows += pair(scan, ways, organs, source, target)
    return rows


def pair(scan: Scan, ways: Carriers, organs: dict[str, int], source: int, target: int) -> list[tuple[int, str, float]]:
    """Those of one pair of slices."""
    distance, still = abs(target - source), scan.image[source]
    moved = ways.moved(still, source, target)
    images = {"still": still, "warped": moved}
    rows = [(distance, f"MSE {name}", np.square(image - scan.image[target]).mean()) for name, image in images.items()]
    for identifier in organs.values():
        mask, truth = scan.organ(identifier)[source], scan.organ(identifier)[target]
        if mask.any() and truth.any():
            for way, found in ways.carried(mask.astype(np.float32), source, target).items():
                rows.append((distance, f"Dice {way}", overlap(found.astype(bool), truth)[0]))
    return rows


def draw(file: Path, scan: Scan, ways: Carriers, organs: dict[str, int]) -> None:
    """Organs of their largest slice, three slices on: the truth there, the copy and what was carried."""
    figure = Figure(figsize=(13, 3.3 * len(organs)), layout="constrained")
    axes = figure.subplots(len(organs), 4)
    for line, (organ, identifier) in zip(axes, organs.items(), strict=True):
        truth = scan.organ(identifier)
        source = min(int(truth.sum((1, 2)).argmax()), len(truth) - 4)
        shown = as_shown(Volume(scan.image[source : source + 4], scan.geometry))
        for axis, distance in zip(line, (0, *DISTANCES), strict=True):
            target = source + distance
            axis.imshow(shown[distance], cmap="gray", vmin=0, vmax=255)
            axis.set_axis_off()
            found = ways.carried(truth[source].astype(np.float32), source, target) if distance else {}
            masks = {"lime": truth[target], "red": found.get("copied"), "yellow": found.get("chained")}
            for (colour, mask), width in zip(masks.items(), (3, 1, 1), strict=True):
                if mask is not None and mask.any():
                    axis.contour(upright(mask, scan.geometry), levels=[0.5], colors=colour, linewidths=width)
            axis.set_title(f"{organ}, slice {target}", fontsize=9)
    figure.suptitle("green: the organ on this slice; red: copied from the left; yellow: carried from the left")
    with whole_file(file) as temporary:
        figure.savefig(temporary, dpi=90)


def main() -> None:
    """Measure one run."""
    command = parser(__doc__)
    command.add_argument("run", help="folder or checkpoint of a training of method=registration")
    command.add_argument("--data-root", type=Path, default=Path("data"))
    command.add_argument("--picture", type=Path, help="PNG to write")
    arguments = command.parse_args()
    path = folders.find_checkpoint(arguments.run, "RUN")
    content = checkpoints.load_checkpoint(path)
    trained = content["config"]
    network = models.restore(content, path).method
    dataset = config.DATASETS[trained["dataset"]]
    fold = choose_fold(config.FOLDS, trained["dataset"], trained["fold"])
    rows = []
    for number in fold.query:
        scan = read_scan(dataset, arguments.data_root, number, mean_and_std=content["intensities"])
        ways = Carriers(scan, network)
        rows += compare(scan, ways, dataset.chosen("all"))
        if arguments.picture and number == fold.query[0]:
            draw(arguments.picture, scan, ways, dataset.chosen("all"))
    print(f"{path}: {content['step']} steps; scans {list(fold.query)}, which it never saw")
    found = pandas.DataFrame(rows, columns=["distance", "what", "value"])
    means = found.pivot_table("value", "distance", "what", sort=False).map("{:.3f}".format)
    print(text_table(means.reset_index()))


if __name__ == "__main__":
    main()
