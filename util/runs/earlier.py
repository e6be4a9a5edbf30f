"""Earlier trainings that a training builds on: which, where their checkpoints lie, whether they may be used."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from util.checkpoints import load_checkpoint
from util.dataset import Dataset
from util.errors import UserError
from util.runs import folders

COMMON = ("dataset", "fold", "setting", "organs", "data_root", "runs")  # what both trainings must be told


def builds_on(options: Mapping) -> dict[str, dict[str, Any]]:
    """What must be trained on the same fold before: the option that names its checkpoint -> what is different there."""
    episode, found = options["episode"], {}
    if episode["sampler"] == "neighbouring" and episode["carry"] != "none" and episode["realistic"] > 0:
        found["episode.registration"] = {"method": "registration"}
    if options["train"]["start"]:
        found["train.start"] = {"stage": 1}
    return found


def earlier_checkpoint(
    option: str, options: Mapping, numbers: list[int], dataset: Dataset
) -> tuple[Path, dict[str, Any]]:
    """File and content of the checkpoint behind an option of `builds_on`, for a run that trains on scans `numbers`.

    Raises:
        UserError: there is none, it is one of another method, or it saw what this training must not.
    """
    section, key = option.split(".")
    change = builds_on(options)[option]
    folder = folders.run_folder({**options, **change})

    def fits(run: dict) -> bool:
        continued = option == "train.start" and run["train"].get("start")
        return run["setting"] == options["setting"] and not continued

    try:
        path = folders.find_checkpoint(options[section][key], option, folder, fits)
    except UserError as error:
        if options[section][key] != "newest":
            raise
        keys = ["method", *(["stage", "encoder"] if "method" not in change else []), *COMMON]
        words = " ".join(f"{key}={change.get(key, options[key])}" for key in keys)
        raise UserError(f"{error}; {option} needs it: python training.py with {words}") from error
    content = load_checkpoint(path)
    if content["method"] != change.get("method", content["method"]):
        raise UserError(f"{option}={path}: is a checkpoint of method={content['method']}, not of {change['method']}")
    require_same_fold(content, path, options, numbers, dataset)
    return path, content


def require_same_fold(
    content: Mapping[str, Any], path: Path, options: Mapping[str, Any], numbers: list[int], dataset: Dataset
) -> None:
    """Raise a UserError if a checkpoint was trained on other scans, or on slices that this run must not see."""
    theirs = content["config"]
    if theirs["dataset"] != options["dataset"] or content["training_scans"] != numbers:
        raise UserError(
            f"{path}: was trained on {theirs['dataset']} scans {content['training_scans']}, this run trains on "
            f"{options['dataset']} scans {numbers}; name a checkpoint of this data set and fold"
        )
    organs = dataset.chosen
    kept_back = organs(theirs.get("organs", "all")) if theirs["setting"] == 2 else {}
    published = theirs["protocol"] == "published" or theirs.get("exclude") == "all"  # as older versions wrote it
    if options["protocol"] == "strict" and published:
        kept_back = {}  # slices with some of the organs trained it
    if options["setting"] == 2 and not organs(options["organs"]).keys() <= kept_back.keys():
        raise UserError(
            f"{path}: was trained in setting {theirs['setting']} and has seen slices that setting 2 removes "
            f"(organs={options['organs']} protocol={options['protocol']}); train it with the same setting and organs"
        )
    if (theirs["scans"]["normalise"] == "scan") != (options["scans"]["normalise"] == "scan"):
        raise UserError(
            f"{path}: saw intensities with scans.normalise={theirs['scans']['normalise']}, this run has "
            f"scans.normalise={options['scans']['normalise']}; both must have the same"
        )
