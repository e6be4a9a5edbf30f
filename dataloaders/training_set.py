"""From a configuration to the scans, the sampler and the episodes of a training."""

import logging
from pathlib import Path

from dataloaders.crops import CropEpisodes
from dataloaders.episodes import TrainingEpisodes
from dataloaders.exclusion import excluded_slices, removal_table
from dataloaders.flows import Carrier
from dataloaders.neighbouring import NeighbouringSampler
from dataloaders.samplers import CropsSampler, NeighboursSampler, Sampler, SliceSampler
from dataloaders.scans import Scan, read_scans, training_intensities
from util.bookkeeping import Bookkeeping
from util.dataset import Dataset, Fold, require_scans
from util.errors import UserError
from util.tables import text_table, write_csv

log = logging.getLogger("training")


def training_scans(config: dict, dataset: Dataset, fold: Fold) -> tuple[list[Scan], tuple[float, float] | None]:
    """The scans of the fold that train, with segments (and labels if setting 2 needs them), and the mean and
    standard deviation that normalised them if it was not each scan's own.

    Raises:
        UserError: a scan is missing or damaged, or none is left to train.
    """
    root = Path(config["data_root"])
    found = dataset.scans(root)
    require_scans(fold, found, root / dataset.images, f"fold {config['fold']} of FOLDS['{config['dataset']}']")
    numbers = fold.training(found)
    if not numbers:
        raise UserError(f"{root / dataset.images}: fold {config['fold']} leaves no scan to train on")
    log.info("%s fold %d: %d training scans %s", config["dataset"], config["fold"], len(numbers), numbers)
    shared = config["scans"]["normalise"] != "scan"
    intensities = training_intensities(dataset, root, numbers) if shared else None
    options = {"labels": config["setting"] == 2, "segments": config["scans"]["segments"], "intensities": intensities}
    return read_scans(dataset, root, numbers, **options), intensities


def make_episodes(
    config: dict,
    dataset: Dataset,
    scans: list[Scan],
    dims: int,
    habits: Bookkeeping,
    carrier: Carrier | None = None,
    folder: Path | None = None,
) -> TrainingEpisodes:
    """The training episodes of the configuration for a 2D or 3D method with its habits; `folder` as in `make_sampler`.

    Raises:
        UserError: the sampler does not fit the method, or a batch would join crops of several shapes.
    """
    options, batch_size = config["episode"], config["train"]["batch_size"]
    if (options["sampler"] == "crops") != (dims == 3):
        raise UserError(
            f"episode.sampler={options['sampler']}: method={config['method']} sees "
            f"{'volumes; choose crops' if dims == 3 else 'slices; crops are for volumes'}"
        )
    sampler = make_sampler(config, dataset, scans, habits, folder)
    arguments = (scans, sampler, options, config["seed"])
    if dims == 2:
        lost = config["protocol"] == "published" and config["stage"] in habits.lost_labels
        return TrainingEpisodes(*arguments, carrier, lost)
    episodes = CropEpisodes(*arguments)
    if batch_size > 1 and len(episodes.shapes) > 1:
        raise UserError(
            f"train.batch_size={batch_size}: the training scans give crops of several shapes "
            f"{sorted(episodes.shapes)}; choose a smaller episode.crop, or train.batch_size=1"
        )
    return episodes


def make_sampler(
    config: dict, dataset: Dataset, scans: list[Scan], habits: Bookkeeping, folder: Path | None = None
) -> Sampler:
    """The sampler of the configuration over the training scans; setting 2 leaves removed_slices.csv in the folder."""
    excluded = None
    if config["setting"] == 2:
        organs, published = dataset.chosen(config["organs"]), config["protocol"] == "published"
        excluded = [excluded_slices(scan.label, organs.values(), published) for scan in scans]
        rows = removal_table({scan.number: scan.label for scan in scans}, organs, published)
        total = rows[-1]
        log.info(
            "setting 2, %s: %d of %d training slices removed, %d of the others show a test organ\n%s",
            config["protocol"],
            total["removed"],
            total["slices"],
            total["leaking"],
            text_table(rows),
        )
        if folder is not None:
            write_csv(folder / "removed_slices.csv", rows)
    episode, segments = config["episode"], [scan.segments for scan in scans]
    options = {"min_size": episode["min_size"], "excluded": excluded}
    if episode["sampler"] == "slice":
        return SliceSampler(segments, **options)
    if episode["sampler"] == "neighbouring":
        return NeighbouringSampler(
            segments, **options, **{key: episode[key] for key in ("realistic", "reach", "queries")}
        )
    if episode["sampler"] == "crops":
        return CropsSampler(segments, depth=episode["crop"][0], **options)
    return NeighboursSampler(segments, size_of=habits.size_of, consecutive=habits.consecutive, **options)
