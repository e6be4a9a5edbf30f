"""From the options to the scans, the sampler and the episodes of a training."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataloaders.crops import CropEpisodes
from dataloaders.episodes import TrainingEpisodes
from dataloaders.exclusion import excluded_slices, removal_table
from dataloaders.flows import Carrier, read_flows
from dataloaders.maps import Maps, maps_folder
from dataloaders.samplers import CropsSampler, NeighbouringSampler, NeighboursSampler, Sampler, SliceSampler
from dataloaders.scans import Scan
from util.bookkeeping import Bookkeeping
from util.dataset import Dataset, Fold, require_scans
from util.errors import UserError
from util.names import stretches
from util.runs.earlier import builds_on, earlier_checkpoint

log = logging.getLogger("training")
# data set, its root, kind of segments, scans, where else they may lie -> data set that knows where they lie
Complete = Callable[[Dataset, Path, str, Sequence[int], Path], Dataset]


@dataclass(frozen=True)
class TrainingData:
    """What a training sees.

    Attributes:
        scans: of the fold that train, with segments.
        mean_and_std: mean and standard deviation that normalised all of them; None = each scan's own did.
        episodes: made of them.
        removed: rows of removed_slices.csv, one for each scan and one for all; empty in setting 1.
        maps: of the scans; as long as they are here, nobody removes them.
    """

    scans: list[Scan]
    mean_and_std: tuple[float, float] | None
    episodes: TrainingEpisodes
    removed: list[dict[str, Any]]
    maps: Maps

    @property
    def numbers(self) -> list[int]:
        """Numbers of the scans."""
        return [scan.number for scan in self.scans]

    @property
    def side(self) -> int:
        """Columns of a slice."""
        return self.scans[0].image.shape[-1]


def training_data(
    options: dict, dataset: Dataset, fold: Fold, dims: int, habits: Bookkeeping, complete: Complete
) -> TrainingData:
    """Read the scans of a fold that train, and make episodes of them for a 2D or 3D method with its habits.

    `complete` makes the segments that scans lack.

    Raises:
        UserError: a scan or an earlier training is missing or damaged, nothing is left to train on, or options
            contradict each other.
    """
    volumes, sampler = dims == 3, options["episode"]["sampler"]
    if (sampler == "crops") != volumes:
        raise UserError(
            f"episode.sampler={sampler}: method={options['method']} sees "
            f"{'volumes; choose crops' if volumes else 'slices; crops are for volumes'}"
        )
    scans, mean_and_std, maps = training_scans(options, dataset, fold, complete)
    excluded, removed = None, []
    if options["setting"] == 2:
        organs, published = dataset.chosen(options["organs"]), options["protocol"] == "published"
        excluded = [excluded_slices(scan.label, organs.values(), published) for scan in scans]
        removed = removal_table({scan.number: scan.label for scan in scans}, organs, published)
    sampler = make_sampler(options["episode"], scans, habits, excluded)
    lost = options["protocol"] == "published" and options["stage"] in habits.lost_labels
    episodes = make_episodes(options, scans, sampler, make_carrier(options, dataset, scans), lost)
    return TrainingData(scans, mean_and_std, episodes, removed, maps)


def training_scans(
    options: dict, dataset: Dataset, fold: Fold, complete: Complete
) -> tuple[list[Scan], tuple[float, float] | None, Maps]:
    """The scans of the fold that train, with segments (and labels if setting 2 needs them), the mean and standard
    deviation that normalised them unless each scan's own did, and the maps they lie in.

    Raises:
        UserError: a scan is missing or damaged, or none is left to train.
    """
    root = Path(options["data_root"])
    found = dataset.scans(root)
    require_scans(fold, found, root / dataset.images, f"fold {options['fold']} of FOLDS['{options['dataset']}']")
    numbers = fold.training(found)
    if not numbers:
        raise UserError(f"{root / dataset.images}: fold {options['fold']} leaves no scan to train on")
    log.info("%s fold %d: %d training scans: %s", options["dataset"], options["fold"], len(numbers), stretches(numbers))
    folder = maps_folder(dataset, root, Path(options["maps"] or Path(options["runs"]) / "maps"))
    dataset = complete(dataset, root, options["scans"]["segments"], numbers, folder)
    maps = Maps(folder, dataset, root, numbers, options["scans"]["segments"], labels=options["setting"] == 2)
    mean_and_std = maps.mean_and_std() if options["scans"]["normalise"] != "scan" else None
    return maps.scans(mean_and_std), mean_and_std, maps


def make_episodes(
    options: dict, scans: list[Scan], sampler: Sampler, carrier: Carrier | None = None, lost_labels: bool = False
) -> TrainingEpisodes:
    """The training episodes of the options: of crops if the sampler chooses these, else of slices.

    Raises:
        UserError: a batch would join crops of several shapes.
    """
    episode, batch_size = options["episode"], options["train"]["batch_size"]
    if episode["sampler"] != "crops":
        return TrainingEpisodes(scans, sampler, episode, options["seed"], carrier, lost_labels)
    episodes = CropEpisodes(scans, sampler, episode, options["seed"])
    if batch_size > 1 and len(episodes.shapes) > 1:
        raise UserError(
            f"train.batch_size={batch_size}: the training scans give crops of several shapes "
            f"{sorted(episodes.shapes)}; choose a smaller episode.crop, or train.batch_size=1"
        )
    return episodes


def make_carrier(options: dict, dataset: Dataset, scans: list[Scan]) -> Carrier | None:
    """What carries superpixels to neighbouring slices: the flows that the registration of this fold left.

    Raises:
        UserError: it was not trained, left no flows, or saw what this training must not.
    """
    if "episode.registration" not in builds_on(options):
        return None
    checkpoint, _ = earlier_checkpoint("episode.registration", options, [scan.number for scan in scans], dataset)
    carry, reach = options["episode"]["carry"], options["episode"]["reach"]
    return Carrier(read_flows(checkpoint, scans, 1 if carry == "chained" else reach), carry)


def make_sampler(
    episode: dict, scans: list[Scan], habits: Bookkeeping, excluded: Sequence[np.ndarray] | None
) -> Sampler:
    """The sampler of the `episode.*` keys over the training scans without their excluded slices `(D,)`."""
    common = {"min_size": episode["min_size"], "excluded": excluded}
    areas, kind = (scan.areas for scan in scans), episode["sampler"]
    if kind == "slice":
        return SliceSampler(areas, **common)
    if kind == "neighbouring":
        return NeighbouringSampler(areas, **common, **{key: episode[key] for key in ("realistic", "reach", "queries")})
    if kind == "crops":
        return CropsSampler(areas, depth=episode["crop"][0], **common)
    return NeighboursSampler(areas, size_of=habits.size_of, consecutive=habits.consecutive, **common)
