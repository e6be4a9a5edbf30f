"""Folders of runs: `runs/<method>_<dataset>_fold<k>/<id>/` with Sacred's run.json and our checkpoints/."""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from util.errors import UserError


def run_folder(options: Mapping) -> Path:
    """Folder of the runs of a method on a fold; a data set's file gives its stem."""
    return Path(options["runs"]) / f"{options['method']}_{Path(options['dataset']).stem}_fold{options['fold']}"


def latest_checkpoint(run: Path) -> Path | None:
    """The checkpoint of a run that has most steps, or None."""
    return max((Path(run) / "checkpoints").glob("step_*.pt"), key=lambda p: int(p.stem.split("_")[1]), default=None)


def find_checkpoint(
    text: str | Path,
    option: str,
    newest_in: Path | None = None,
    accept: Callable[[dict], bool] = lambda options: True,
) -> Path:
    """The checkpoint that a user names, in every command: a file, a run's folder (its last one), or "newest".

    Args:
        text: what was typed.
        option: where, for the sentence about a mistake.
        newest_in: folder of the runs that "newest" chooses from, the newest finished one; None: the word has no
            meaning there.
        accept: says of a run's configuration whether "newest" may choose it.

    Raises:
        UserError: there is no such file, the folder holds no checkpoint, or no run is finished.
    """
    path = Path(text)
    if str(text) == "newest" and newest_in is not None:
        return newest_finished(newest_in, accept)
    if path.is_file():
        return path
    found = latest_checkpoint(path)
    if found is None:
        what = "this folder holds no checkpoint" if path.is_dir() else "no such checkpoint"
        raise UserError(f"{option}={text}: {what}; name a file, or the folder of a run such as runs/adnet_CMR_fold0/1")
    return found


def status(run: Path) -> str:
    """COMPLETED, RUNNING, INTERRUPTED or FAILED as Sacred recorded it; UNKNOWN if nothing readable is there."""
    return _record(run).get("status", "UNKNOWN")


def _record(run: Path) -> dict:
    """What Sacred recorded of a run; empty if nothing readable is there."""
    try:
        return json.loads((Path(run) / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def configuration(run: Path) -> dict:
    """The configuration of a run, as Sacred recorded it.

    Raises:
        UserError: it is not there, or damaged.
    """
    file = Path(run) / "config.json"
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: cannot be read; the run beside it is damaged, move it away") from error


def numbered(folder: Path) -> list[Path]:
    """The runs in a folder, newest first."""
    return sorted((p for p in Path(folder).glob("*") if p.name.isdigit()), key=lambda p: int(p.name), reverse=True)


def program(run: Path) -> str:
    """Which program made it, training or test, as Sacred recorded it; "" if nothing readable is there."""
    return _record(run).get("experiment", {}).get("name", "")


def flat(options: Mapping[str, Any]) -> dict[str, Any]:
    """Nested options as `train.steps`."""
    pairs = {}
    for key, value in options.items():
        inner = flat(value) if isinstance(value, Mapping) else {"": value}
        pairs |= {f"{key}.{name}".rstrip("."): one for name, one in inner.items()}
    return pairs


def differences(one: Mapping, other: Mapping, ignored: frozenset[str]) -> set[str]:
    """Keys (`train.steps`) with different values; what only one has, an older version did not know.

    `ignored` are keys, or sections (`train`) as a whole.
    """
    one, other = flat(one), flat(other)
    differing = {key for key in one.keys() & other.keys() if one[key] != other[key]}
    return {key for key in differing if not {key, key.split(".")[0]} & ignored}


def is_alive(run: Path) -> bool:
    """True if a run says it is running and gave a sign of life lately (Sacred does every 10 seconds)."""
    entry = _record(run)
    beat = entry.get("heartbeat") or entry.get("start_time")
    if entry.get("status") != "RUNNING" or not beat:
        return False
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(beat).replace(tzinfo=UTC)).total_seconds() < 30
    except (TypeError, ValueError):  # a damaged record gives no sign of life
        return False


def newest_finished(folder: Path, accept: Callable[[dict], bool] = lambda options: True) -> Path:
    """The last checkpoint of the newest run in `folder` that finished its training and that `accept` takes.

    Raises:
        UserError: there is none; unfinished runs are named.
    """
    trained = [run for run in numbered(folder) if latest_checkpoint(run) and accept(configuration(run))]
    for run in trained:
        if status(run) == "COMPLETED":
            return latest_checkpoint(run)
    if not trained:
        raise UserError(f"{folder}: no finished training run; train first (script/train_*.sh)")
    raise UserError(
        f"{folder}: no training run has finished; go on with resume={trained[0]}, or test what is there with "
        f"test.checkpoint={latest_checkpoint(trained[0])}"
    )
