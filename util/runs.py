"""Folders of runs: `runs/<method>_<dataset>_fold<k>/<id>/` with Sacred's run.json and our checkpoints/."""

import json
from collections.abc import Callable
from pathlib import Path

from util.errors import UserError


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run that has most steps, or None."""
    return max((Path(run) / "checkpoints").glob("step_*.pt"), key=lambda p: int(p.stem.split("_")[1]), default=None)


def checkpoint(named: str, key: str) -> Path:
    """The checkpoint that a `key=` names: a run's folder stands for its last one.

    Raises:
        UserError: the folder holds none.
    """
    path = Path(named)
    found = latest_checkpoint(path) if path.is_dir() else path
    if found is None:
        raise UserError(f"{key}={named}: this folder holds no checkpoint; name a folder such as runs/adnet_CMR_fold0/1")
    return found


def status(run: Path) -> str:
    """COMPLETED, RUNNING, INTERRUPTED or FAILED as Sacred recorded it; UNKNOWN where nothing readable is there."""
    try:
        return json.loads((Path(run) / "run.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        return "UNKNOWN"


def configuration(run: Path) -> dict:
    """The configuration of a run, as Sacred recorded it.

    Raises:
        UserError: it is not there, or damaged.
    """
    file = Path(run) / "config.json"
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read; the run beside it is damaged, move it away") from error


def newest_finished(folder: Path, accept: Callable[[dict], bool] = lambda config: True) -> Path:
    """The last checkpoint of the newest run in `folder` that finished its training.

    Args:
        folder: of the runs of one method, data set and fold.
        accept: says of a run's configuration whether it is one that is looked for.

    Raises:
        UserError: there is none; unfinished runs are named.
    """
    runs = sorted((p for p in Path(folder).glob("*") if p.name.isdigit()), key=lambda p: int(p.name), reverse=True)
    trained = [run for run in runs if latest_checkpoint(run) and accept(configuration(run))]
    for run in trained:
        if status(run) == "COMPLETED":
            return latest_checkpoint(run)
    if not trained:
        raise UserError(f"{folder}: no finished training run; train first (script/train_*.sh)")
    raise UserError(
        f"{folder}: no training run has finished; go on with resume={trained[0]}, or test what is there with "
        f"test.checkpoint={latest_checkpoint(trained[0])}"
    )
