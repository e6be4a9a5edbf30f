"""Score a checkpoint on its fold: `python test.py with method=adnet dataset=PHANTOM fold=0`."""

import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from tqdm import tqdm

import config
import models
import supervoxels
from dataloaders.pairings import Pairing, make_pairing
from dataloaders.protocols import make_tasks, published_fold
from dataloaders.scans import Scan, Scans, read_scan, training_mean_and_std
from util import checkpoints
from util.bookkeeping import Bookkeeping
from util.checkpoints import UNTRAINED, TrainedMethod
from util.dataset import Dataset, Fold, choose_fold, require_scans
from util.errors import UserError
from util.evaluation.metrics import COLUMNS, VOTED
from util.evaluation.slices import make_segmenter
from util.evaluation.tasks import Result, Segmenter, Task, evaluate
from util.evaluation.voting import SupervoxelVoter
from util.files import write_text
from util.memory import peak_gib
from util.names import safe_names, stretches
from util.parallel import PROCESSES, Backend, each_scan
from util.report import scores
from util.report.contours import draw_contours
from util.runs import folders
from util.runs.curves import curves
from util.runs.experiment import CommandLine, folder_of, plain, with_dataset_file
from util.runs.processes import mixed_precision, prepare_device
from util.volume import write_volume

log = logging.getLogger("test")
experiment = CommandLine("test", config)

Row = dict[str, Any]  # of scores.csv


@experiment.main
def score(_run) -> float:
    """Segment and score every organ of every query scan; returns the mean Dice over organs."""
    options = plain(_run.config)
    folder = folder_of(_run)
    device = prepare_device(options, "test")
    dataset, root = config.DATASETS[options["dataset"]], Path(options["data_root"])
    fold = test_fold(options, dataset, root)
    members = load_methods(options, fold)
    scans = Scans(dataset, root)
    tasks = make_tasks(
        fold,
        dataset.chosen(options["organs"]),
        scans.label,
        chosen_pairing(options),
        rotate=options["test"]["supports"] == "all",
        absent=options["protocol"] == "strict",
        spare=fold.training(dataset.scans(root)),
    )
    work = Work(options, members, facts(options, members), prediction_names(tasks, options), folder)
    rows = list(segment(work, tasks))
    log.info("peak memory %.2f GB", peak_gib(device))
    if folder is not None:
        scores.write_scores(folder / "scores.csv", rows)
        write_sources(folder / "scans.json", scans, {task.query for task in tasks})
        with curves(folder, "test", options) as watched:
            for writer in watched:
                writer.write(members[0].step, means_of(rows))  # where the training's curves end
    show(rows, options)
    if folder is not None:
        if options["test"]["save"]:
            identifiers = {task.organ: task.identifier for task in tasks}
            draw_contours(folder, rows, identifiers, lambda number: read_scan(dataset, root, number))
        print(f"\n{folder / 'scores.csv'}")
    return scores.overall_mean(rows, recorder=recorder_of(options))


@dataclass(frozen=True)
class Work:
    """What is to be done with every query scan, here or in another process.

    Attributes:
        options: the configuration.
        members: the method, and those it is averaged with; of those with a file the network may be left out.
        facts: columns that all rows of scores.csv share.
        name_of: row -> name of the file of its prediction.
        folder: of the run; None = nothing is written.
    """

    options: Mapping
    members: Sequence[TrainedMethod]
    facts: Mapping[str, Any]
    name_of: Callable[[Mapping], str]
    folder: Path | None

    def do(self, tasks: Sequence[Task]) -> Iterator[Row]:
        """Segment and score, one query scan after the other; scans are forgotten after their turn."""
        options, test = self.options, self.options["test"]
        device = prepare_device(options, "test")
        dataset, root = config.DATASETS[options["dataset"]], Path(options["data_root"])
        scans_of = {member.mean_and_std: Scans(dataset, root, member.mean_and_std) for member in self.members}
        scans = scans_of[self.members[0].mean_and_std]
        segmenters = [segmenter(options, member, scans_of[member.mean_and_std], device) for member in self.members]
        voter = SupervoxelVoter(scans.__getitem__, supervoxels.partitions) if test["vote"] else None
        memories = list(scans_of.values())
        for result in evaluate(segmenters, tasks, scans.__getitem__, pool=test["pool"], voter=voter, memories=memories):
            row = {**result.row, **self.facts}
            row |= {f"{kind}prediction": f"predictions/{kind}{self.name_of(row)}" for kind in result.predictions}
            if self.folder is not None:  # the scan has no name here, which would keep it while the next one is read
                write_predictions(self.folder, row, result, scans[result.task.query])
            yield row

    def in_processes(self, tasks: Sequence[Task]) -> Iterator[Row]:
        """The same with several query scans at once."""
        options, test = self.options, self.options["test"]
        jobs = test["jobs"] or -1
        threads = options["threads"] or max(1, joblib.cpu_count() // joblib.effective_n_jobs(jobs))
        options = {**options, "threads": threads, "data_root": str(Path(options["data_root"]).resolve())}
        members = [replace(one, method=None, file=one.file.resolve()) if one.file else one for one in self.members]
        work = replace(self, options=options, members=members, folder=self.folder and self.folder.resolve())
        own = {
            query: [task for task in tasks if task.query == query]
            for query in dict.fromkeys(task.query for task in tasks)
        }
        image_file = config.DATASETS[options["dataset"]].image_file
        for _, done in each_scan(
            do_query,
            {query: (work, tasks) for query, tasks in own.items()},
            jobs,
            file=lambda work, tasks: image_file(Path(options["data_root"]), tasks[0].query),
            backend=Backend(test["backend"], test["scheduler"] or None),
            silent=True,
        ):
            if done.failure:
                raise UserError(done.failure)
            yield from done.result


def do_query(work: Work, tasks: Sequence[Task]) -> list[Row]:
    """One query scan in a process of its own, which may know nothing of data sets that are named by a file."""
    with_dataset_file({"dataset": work.options["dataset"]}, config)
    files = [one.file for one in work.members if one.method is None]
    networks = {file: models.read(file, changed=file.stat().st_mtime_ns) for file in files}
    members = [one if one.method else replace(one, method=networks[one.file]) for one in work.members]
    return list(replace(work, members=members).do(tasks))


def segment(work: Work, tasks: Sequence[Task]) -> Iterable[Row]:
    """Do the work with a progress bar, in this process or in several."""
    test = work.options["test"]
    here = test["jobs"] == 1 and test["backend"] == PROCESSES.name
    total = len({(task.query, task.organ) for task in tasks}) if test["pool"] else len(tasks)
    return tqdm((work.do if here else work.in_processes)(tasks), total=total, unit="task", desc="segmenting")


def segmenter(options: Mapping, member: TrainedMethod, scans: Scans, device: torch.device) -> Segmenter:
    """One method with the scans as it was trained to see them."""
    test, method = options["test"], member.method.to(device)
    more = {"patch": test["patch"], "memory_gb": test["memory_gb"], "blend": options["protocol"] == "strict"}
    found = make_segmenter(method, scans.__getitem__, device, test["batch_size"], **more)
    found.probabilities = mixed_precision(test["precision"], device)(found.probabilities)
    return found


def recorder_of(options: Mapping) -> str:
    """Whose tables are printed."""
    return "plain" if options["protocol"] == "strict" else habits(options).recorder


def show(rows: Sequence[dict], options: Mapping) -> None:
    """Print the tables of the scores."""
    test, strict, recorder = options["test"], options["protocol"] == "strict", recorder_of(options)
    for name in scores.RECORDERS[recorder]:
        columns = {f"{options['protocol']}, {test['pairing']}": rows, **voted_column(rows, name)}
        print(scores.organ_table(columns, name, recorder))
    if strict and test["pairing"] not in ("whole", "volume"):
        columns = {"whole volume": rows, **voted_column(rows, "dice_volume")}
        print("\n" + scores.organ_table(columns, score="dice_volume"))
    if test["supports"] == "all" and not test["pool"]:
        print("\nthe choice of the support scan\n" + scores.support_spread(rows))


def means_of(rows: Sequence[dict]) -> dict[str, float]:
    """The mean of every score over the scans of an organ, as `dice/liver`; scores that no scan has are left out."""
    organs = dict.fromkeys(row["organ"] for row in rows)
    values = {
        f"{score}/{organ}": [row[score] for row in rows if row["organ"] == organ and np.isfinite(row[score])]
        for score in COLUMNS.keys() & rows[0].keys()
        for organ in organs
    }
    return {name: float(np.mean(found)) for name, found in sorted(values.items()) if found}


def voted_column(rows: Sequence[dict], score: str) -> dict[str, list[dict]]:
    """A column for `organ_table` with the score of the voted answer, if there is one."""
    return {"voted": [{**row, score: row[VOTED + score]} for row in rows]} if VOTED + score in rows[0] else {}


def chosen_pairing(options: Mapping) -> Pairing:
    """How slices meet, from the `test.*` keys."""
    test, published = options["test"], {}
    if options["protocol"] == "published":
        parts = {"part_rule": habits(options).part_rule, "whole_volume": False}
        published = {"parts": parts, "propagate": {**parts, "anchored": False}}.get(test["pairing"], {})
    chosen = {name: test[name] for name in ("parts", "shots", "shots_of")}
    return make_pairing(test["pairing"], **chosen, **published)


def habits(options: Mapping) -> Bookkeeping:
    """What the published code of the method does."""
    return models.method_class(options["method"]).published


def test_fold(options: Mapping, dataset: Dataset, root: Path) -> Fold:
    """The fold of the configuration under its protocol.

    Raises:
        UserError: no such fold, or a scan of it is missing.
    """
    fold = choose_fold(config.FOLDS, options["dataset"], options["fold"])
    where = f"fold {options['fold']} of FOLDS['{options['dataset']}']"
    require_scans(fold, dataset.scans(root), root / dataset.images, where)
    if options["protocol"] == "strict":
        return fold
    return published_fold(fold, habits(options).support_index, habits(options).fold_order)


def load_methods(options: Mapping, fold: Fold) -> list[TrainedMethod]:
    """The method of `test.checkpoint`, and those of `test.ensemble`, which may be other methods.

    Raises:
        UserError: no checkpoint, one of another method, or one that was trained on scans of this fold.
    """
    test, folder = options["test"], folders.run_folder(options)
    if test["checkpoint"] == UNTRAINED:
        first = untrained_method(options, fold)
    else:
        file = folders.find_checkpoint(test["checkpoint"], "test.checkpoint", folder)
        first = load_method(options, fold, file, method=options["method"])
    files = [folders.find_checkpoint(name, "test.ensemble", folder) for name in test["ensemble"]]
    return [first, *(load_method(options, fold, file) for file in files)]


def untrained_method(options: Mapping, fold: Fold) -> TrainedMethod:
    """The method of the options with the weights it starts from."""
    scans = Scans(config.DATASETS[options["dataset"]], Path(options["data_root"]))
    arguments = models.fitted(options["model"], scans[fold.support].image.shape[-1])
    built = {key: options[key] for key in ("encoder", "weights", "stride")}
    method = models.build(options["method"], arguments, **built).eval()
    return TrainedMethod(method, options, mean_and_std=shared_mean_and_std(options, fold))


def load_method(options: Mapping, fold: Fold, path: Path, method: str | None = None) -> TrainedMethod:
    """The method of a checkpoint, which must not have seen the fold's scans; `method`: the only one that will do."""
    content = checkpoints.load_checkpoint(path)
    trained, numbers = content["config"], set(content["training_scans"])
    if method not in (None, content["method"]):
        raise UserError(f"{path}: is a checkpoint of method={content['method']}, not of method={method}")
    if trained["dataset"] != options["dataset"]:
        log.warning("%s was trained on %s: this is a test across data sets", path, trained["dataset"])
    elif seen := sorted(numbers & fold.tested):
        raise UserError(
            f"{path}: was trained on scans {stretches(seen)} of this fold (its own fold is {trained['fold']}); test it "
            "on that fold, or train on this one"
        )
    warn_of_leak(options, trained, path)
    log.info("checkpoint %s: %s on %s, %d steps", path, content["method"], content["encoder"], content["step"])
    member = models.restore(content, path)
    if trained["scans"]["normalise"] not in ("published", "fold"):  # as older versions called it
        return member
    return replace(member, mean_and_std=shared_mean_and_std({**options, "scans": trained["scans"]}, fold))


def warn_of_leak(options: Mapping, trained: Mapping, path: Path) -> None:
    """Setting 2 promises organs that training never saw; say so if other ones are tested than were removed."""
    if trained["setting"] == 2 and trained["dataset"] == options["dataset"]:
        dataset = config.DATASETS[options["dataset"]]
        seen = set(dataset.chosen(options["organs"])) - set(dataset.chosen(trained.get("organs", "all")))
        if seen:
            text = "%s was trained with organs=%s removed: it may have seen %s"
            log.warning(text, path, trained.get("organs", "all"), ", ".join(sorted(seen)))


def shared_mean_and_std(options: Mapping, fold: Fold) -> tuple[float, float] | None:
    """Statistics of the fold's training scans if these normalise all scans, or of its tested ones; else None."""
    if options["scans"]["normalise"] == "scan":
        return None
    dataset, root = config.DATASETS[options["dataset"]], Path(options["data_root"])
    by_training = options["scans"]["normalise"] == "training"
    numbers = fold.training(dataset.scans(root)) if by_training else sorted(fold.tested)
    return training_mean_and_std(dataset, root, numbers)


def facts(options: Mapping, members: Sequence[TrainedMethod]) -> dict[str, Any]:
    """What all rows of scores.csv share: what the scores were obtained with."""
    test = options["test"]
    known = {**test, **options, **{key: members[0].options[key] for key in ("encoder", "setting", "seed")}}
    columns = ("method", "encoder", "dataset", "setting", "fold", "seed", "protocol", "pairing", "shots", "shots_of")
    return {
        **{column: known[column] for column in columns},
        "supports": "pooled" if test["pool"] else test["supports"],
        "checkpoint": "+".join(member.name for member in members),
        "checkpoint_sha256": "+".join(member.sha256 for member in members),
    }


def prediction_names(tasks: Sequence[Task], options: Mapping) -> Callable[[Mapping], str]:
    """Row -> name of the file of its prediction."""
    organs = safe_names(dict.fromkeys(task.organ for task in tasks))
    several = not options["test"]["pool"] and len({(task.organ, task.query) for task in tasks}) < len(tasks)
    support = "_support{support}" if several else ""
    return lambda row: f"{organs[row['organ']]}_{row['scan']}{support.format_map(row)}.nii.gz"


def write_predictions(folder: Path, row: Mapping, result: Result, scan: Scan) -> None:
    """Write what a method answers, and the voted answer, as NIfTI on the grid of the scan."""
    for kind, prediction in result.predictions.items():
        whole = np.zeros(scan.shape, dtype=np.uint8)
        depth, height, width = prediction.shape
        whole[:depth, :height, :width] = prediction
        write_volume(folder / row[f"{kind}prediction"], whole, scan.geometry)


def write_sources(file: Path, scans: Scans, numbers: Iterable[int]) -> None:
    """Write which files were segmented and scored, so that a report can show them without knowing the data set."""
    dataset, root = scans.dataset, scans.root.resolve()
    files = {
        number: {"image": str(dataset.image_file(root, number)), "label": str(dataset.label_file(root, number))}
        for number in sorted(numbers)
    }
    write_text(file, json.dumps({"organs": dict(dataset.organs), "scans": files}, indent=1))


if __name__ == "__main__":
    experiment.run_commandline(sys.argv)
