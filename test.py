"""Score a checkpoint on its fold: `python test.py with method=adnet dataset=PHANTOM fold=0`."""

import functools
import json
import logging
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import config as tables
import models
from dataloaders.pairings import Pairing, make_pairing
from dataloaders.protocols import make_tasks, published_fold
from dataloaders.scans import Scan, read_scan, training_intensities
from models.parts.base import FewShotMethod
from util import checkpoints, report
from util.bookkeeping import Bookkeeping
from util.dataset import Dataset, Fold, choose_fold, require_scans
from util.errors import UserError
from util.evaluation.slices import make_segmenter
from util.evaluation.tasks import Result, evaluate
from util.files import write_text
from util.memory import peak_gib
from util.pictures import upright
from util.runs import folders
from util.runs.experiment import CommandLine, plain
from util.runs.processes import prepare_device
from util.volume import write_volume

log = logging.getLogger("test")
experiment = CommandLine("test", tables)

UNTRAINED = "untrained"


@experiment.main
def score(_run) -> float:
    """Segment and score every organ of every query scan; returns the mean Dice over organs."""
    config = plain(_run.config)
    folder = Path(_run.observers[0].dir) if _run.observers else None
    device = prepare_device(config)
    dataset, root = tables.DATASETS[config["dataset"]], Path(config["data_root"])
    options, strict = config["test"], config["protocol"] == "strict"
    fold = test_fold(config, dataset, root)
    members = load_methods(config, fold)
    read = functools.cache(lambda number, intensities: read_scan(dataset, root, number, intensities=intensities))
    scan = functools.partial(read, intensities=members[0].intensities)
    tasks = make_tasks(
        fold,
        dataset.chosen(config["organs"]),
        lambda number: scan(number).label,
        chosen_pairing(config),
        rotate=options["supports"] == "all",
        absent=strict,
        spare=fold.training(dataset.scans(root)),
    )
    segmenters = [
        make_segmenter(
            member.method.to(device).eval(),
            functools.partial(read, intensities=member.intensities),
            device,
            options["batch_size"],
            patch=options["patch"],
            memory_gb=options["memory_gb"],
            blend=strict,
        )
        for member in members
    ]
    results = evaluate(segmenters, tasks, scan, pool=options["pool"])
    total = len({(task.query, task.organ) for task in tasks}) if options["pool"] else len(tasks)
    results = list(tqdm(results, total=total, unit="task", desc="segmenting"))
    log.info("peak memory %.2f GB", peak_gib(device))
    rows = [describe(result, config, members) for result in results]
    if folder is not None:
        save_sources(folder / "scans.json", dataset, root.resolve(), {task.query for task in tasks})
        save(folder, rows, results, scan, pictures=options["save"])
    recorder = "plain" if strict else habits(config).recorder
    for name in report.RECORDERS[recorder]:
        print(report.organ_table({f"{config['protocol']}, {options['pairing']}": rows}, name, recorder))
    if strict and options["pairing"] not in ("whole", "volume"):
        print("\n" + report.organ_table({"whole volume": rows}, score="dice_volume"))
    if options["supports"] == "all" and not options["pool"]:
        print("\nthe choice of the support scan\n" + report.support_spread(rows))
    if folder is not None:
        print(f"\n{folder / 'scores.csv'}")
    return report.overall_mean(rows, recorder=recorder)


def chosen_pairing(config: dict) -> Pairing:
    """How slices meet, from the `test.*` keys."""
    options = config["test"]
    kind, published = options["pairing"], {}
    if config["protocol"] == "published" and kind in ("parts", "propagate"):
        published = {"part_rule": habits(config).part_rule, "whole_volume": False}
    if config["protocol"] == "published" and kind == "propagate":
        published["anchored"] = False
    return make_pairing(kind, **{name: options[name] for name in ("parts", "shots", "shots_of")}, **published)


def habits(config: dict) -> Bookkeeping:
    """What the published code of the method does."""
    return models.method_class(config["method"]).published


def test_fold(config: dict, dataset: Dataset, root: Path) -> Fold:
    """The fold of the configuration under its protocol.

    Raises:
        UserError: no such fold, or a scan of it is missing.
    """
    fold = choose_fold(tables.FOLDS, config["dataset"], config["fold"])
    where = f"fold {config['fold']} of FOLDS['{config['dataset']}']"
    require_scans(fold, dataset.scans(root), root / dataset.images, where)
    if config["protocol"] == "strict":
        return fold
    return published_fold(fold, habits(config).support_index, habits(config).fold_order)


@dataclass(frozen=True)
class Trained:
    """A method to test.

    Attributes:
        method: with its weights.
        checkpoint: file it came from, or "untrained".
        sha256: first digits of the file's SHA-256, empty if untrained.
        encoder: its name.
        setting: 1 or 2, that it was trained in.
        seed: it was trained with.
        intensities: mean and standard deviation that normalised its scans, None = each scan's own.
    """

    method: FewShotMethod
    checkpoint: str
    sha256: str
    encoder: str
    setting: int
    seed: int
    intensities: tuple[float, float] | None


def load_methods(config: dict, fold: Fold) -> list[Trained]:
    """The method of `test.checkpoint`, and those of `test.ensemble`, which may be other methods.

    Raises:
        UserError: no checkpoint, one of another method, or one that was trained on scans of this fold.
    """
    options = config["test"]
    further = [_load_method(config, fold, path, any_method=True) for path in options["ensemble"]]
    return [_load_method(config, fold, options["checkpoint"]), *further]


def _load_method(config: dict, fold: Fold, wanted: str, *, any_method: bool = False) -> Trained:
    if wanted == UNTRAINED:
        keys = ("encoder", "weights", "stride")
        dataset, root = tables.DATASETS[config["dataset"]], Path(config["data_root"])
        arguments = models.fitted(config["model"], lambda: read_scan(dataset, root, fold.support).image.shape[-1])
        method = models.build(config["method"], arguments, **{key: config[key] for key in keys})
        about = (config["encoder"], config["setting"], config["seed"], shared_intensities(config, fold))
        return Trained(method, UNTRAINED, "", *about)
    folder = folders.run_folder(config)
    path = folders.newest_finished(folder) if wanted == "newest" else Path(wanted)
    content = checkpoints.load_checkpoint(path)
    if content["method"] != config["method"] and not any_method:
        raise UserError(f"{path}: is a checkpoint of method={content['method']}, not of method={config['method']}")
    trained_on, dataset = set(content["training_scans"]), content["config"]["dataset"]
    if dataset == config["dataset"] and trained_on & fold.tested:
        raise UserError(
            f"{path}: was trained on scans {sorted(trained_on & fold.tested)} of this fold (its own fold is "
            f"{content['config']['fold']}); test it on that fold, or train on this one"
        )
    if dataset != config["dataset"]:
        log.warning("%s was trained on %s: this is a test across data sets", path, dataset)
    warn_of_leak(config, content["config"], path)
    log.info("checkpoint %s: %s on %s, %d steps", path, content["method"], content["encoder"], content["step"])
    trained, intensities = content["config"], content["intensities"]
    if trained["scans"]["normalise"] == "published":
        intensities = shared_intensities({**config, "scans": trained["scans"]}, fold)
    about = (content["encoder"], trained["setting"], trained["seed"], intensities)
    return Trained(models.restore(content, path), str(path), checkpoints.fingerprint(path), *about)


def warn_of_leak(config: dict, trained: dict, path: Path) -> None:
    """Setting 2 promises organs that training never saw; say so if other ones are tested than were removed."""
    if trained["setting"] == 2 and trained["dataset"] == config["dataset"]:
        dataset = tables.DATASETS[config["dataset"]]
        seen = set(dataset.chosen(config["organs"])) - set(dataset.chosen(trained.get("organs", "all")))
        if seen:
            log.warning(
                "%s was trained with organs=%s removed: it may have seen %s",
                path,
                trained.get("organs", "all"),
                ", ".join(sorted(seen)),
            )


def shared_intensities(config: dict, fold: Fold) -> tuple[float, float] | None:
    """Statistics of the fold's training scans if these normalise all scans, or of its tested ones; else None."""
    if config["scans"]["normalise"] == "scan":
        return None
    dataset, root = tables.DATASETS[config["dataset"]], Path(config["data_root"])
    by_training = config["scans"]["normalise"] == "training"
    return training_intensities(
        dataset, root, fold.training(dataset.scans(root)) if by_training else sorted(fold.tested)
    )


def describe(result: Result, config: dict, members: Sequence[Trained]) -> dict[str, Any]:
    """A row of scores.csv: the scores, and what they were obtained with."""
    options = config["test"]
    return {
        **result.row,
        "method": config["method"],
        "encoder": members[0].encoder,
        "dataset": config["dataset"],
        "setting": members[0].setting,
        "fold": config["fold"],
        "seed": members[0].seed,
        "protocol": config["protocol"],
        "pairing": options["pairing"],
        "shots": options["shots"],
        "shots_of": options["shots_of"],
        "supports": "pooled" if options["pool"] else options["supports"],
        "checkpoint": "+".join(member.checkpoint for member in members),
        "checkpoint_sha256": "+".join(member.sha256 for member in members),
    }


def save(
    folder: Path,
    rows: Sequence[dict],
    results: Sequence[Result],
    scan_of: Callable[[int], Scan],
    *,
    pictures: bool,
) -> None:
    """Write predictions as NIfTI on their scans' grids, on request one picture per organ, and at last scores.csv."""
    several = len({(row["organ"], row["scan"]) for row in rows}) < len(rows)
    for row, result in zip(rows, results, strict=True):
        scan, name = scan_of(result.task.query), result.task.organ.replace(" ", "_")
        whole = np.zeros(scan.shape, dtype=np.uint8)
        depth, height, width = result.prediction.shape
        whole[:depth, :height, :width] = result.prediction
        support = f"_support{result.row['support']}" if several else ""
        row["prediction"] = f"predictions/{name}_{scan.number}{support}.nii.gz"
        write_volume(folder / row["prediction"], whole, scan.geometry)
    if pictures:
        for organ in dict.fromkeys(row["organ"] for row in rows):
            own = [result for result in results if result.task.organ == organ]
            draw_organ(folder / f"{organ.replace(' ', '_')}.png", own, scan_of)
    report.write_scores(folder / "scores.csv", rows)


def save_sources(file: Path, dataset: Dataset, root: Path, scans: Iterable[int]) -> None:
    """Write which files were segmented and scored, so that a report can show them without knowing the data set."""
    files = {
        number: {"image": str(dataset.image_file(root, number)), "label": str(dataset.label_file(root, number))}
        for number in sorted(scans)
    }
    write_text(file, json.dumps({"organs": dict(dataset.organs), "scans": files}, indent=1))


def draw_organ(file: Path, results: Sequence[Result], scan_of: Callable[[int], Scan]) -> None:
    """One picture of an organ: for every query scan the slice where the organ is largest."""
    rows = []
    for result in results:
        scan = scan_of(result.task.query)
        truth = scan.organ(result.task.identifier)
        z = int(truth.sum((1, 2)).argmax())
        text = f"scan {scan.number}: Dice {result.row['dice']:.2f}; slice {z}"
        shown = (upright(volume[z], scan.geometry) for volume in (scan.image, truth, result.prediction))
        rows.append((text, *shown))
    report.draw_contours(file, f"{results[0].task.organ}, support scan {results[0].row['support']}", rows)


if __name__ == "__main__":
    experiment.run_commandline(sys.argv)
