"""Folders of runs: `runs/<method>_<dataset>_fold<k>/<id>/` with Sacred's run.json and our checkpoints/."""

import json
from pathlib import Path

from util.errors import UserError


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run that has most steps, or None."""
    return max((Path(run) / "checkpoints").glob("step_*.pt"), key=lambda p: int(p.stem.split("_")[1]), default=None)


def status(run: Path) -> str:
    """COMPLETED, RUNNING, INTERRUPTED or FAILED as Sacred recorded it; UNKNOWN where nothing readable is there."""
    try:
        return json.loads((Path(run) / "run.json").read_text())["status"]
    except (OSError, ValueError, KeyError):
        return "UNKNOWN"


def newest_finished(folder: Path) -> Path:
    """The last checkpoint of the newest run in `folder` that finished its training.

    Raises:
        UserError: there is none; unfinished runs are named.
    """
    runs = sorted((p for p in Path(folder).glob("*") if p.name.isdigit()), key=lambda p: int(p.name), reverse=True)
    trained = [run for run in runs if latest_checkpoint(run)]
    for run in trained:
        if status(run) == "COMPLETED":
            return latest_checkpoint(run)
    if not trained:
        raise UserError(f"{folder}: no finished training run; train first (script/train_*.sh)")
    raise UserError(
        f"{folder}: no training run has finished; go on with resume={trained[0]}, or test what is there with "
        f"test.checkpoint={latest_checkpoint(trained[0])}"
    )
