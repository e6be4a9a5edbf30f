"""Slurm files: an array job with one task per training, and the job of the report that waits for it."""

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from util.files import write_text

OPTIONS = "--gres=gpu:1 --cpus-per-task=4 --time=24:00:00"  # unless the environment's SBATCH says otherwise


def write_jobs(
    folder: Path, words: Sequence[str], environment: Mapping[str, str], jobs: Sequence[tuple[int, int]], root: Path
) -> str:
    """Write train.sbatch and report.sbatch.

    Args:
        folder: where to; the jobs' logs go there, too.
        words: the command that does everything for FOLDS and SEEDS.
        environment: variables of the command.
        jobs: (fold, seed) of every training.
        root: of the repository.

    Returns:
        the lines of shell that submit both.
    """
    folder = folder.resolve()
    folds, seeds = ([str(pair[at]) for pair in jobs] for at in (0, 1))
    train = _write(
        folder / "train.sbatch",
        # the program itself gets the signal two minutes before the end, and goes on when it is submitted again
        [f"--array=0-{len(jobs) - 1}", "--signal=B:TERM@120", *shlex.split(os.environ.get("SBATCH", OPTIONS))],
        environment,
        [
            f"folds=({' '.join(folds)}) seeds=({' '.join(seeds)})",
            "export FOLDS=${folds[$SLURM_ARRAY_TASK_ID]} SEEDS=${seeds[$SLURM_ARRAY_TASK_ID]}",
            f"exec {shlex.join(words)} --no-report",
        ],
        root,
    )
    everything = {name: " ".join(dict.fromkeys(values)) for name, values in (("FOLDS", folds), ("SEEDS", seeds))}
    report = _write(
        folder / "report.sbatch", [], {**environment, **everything}, [f"exec {shlex.join(words)} --report-only"], root
    )
    return (
        f"job=$(sbatch --parsable {shlex.quote(str(train))})\n"
        f"sbatch --dependency=afterok:$job {shlex.quote(str(report))}"
    )


def _write(file: Path, options: Sequence[str], environment: Mapping[str, str], body: Sequence[str], root: Path) -> Path:
    options = [f"--job-name={file.parent.name}", f"--output={file.parent}/{file.stem}_%A_%a.log", *options]
    lines = [
        "#!/usr/bin/env bash",
        *(f"#SBATCH {option}" for option in options),
        "set -euo pipefail",
        f"cd {shlex.quote(str(root))}",
        *(f"export {name}={shlex.quote(value)}" for name, value in environment.items()),
        *body,
    ]
    write_text(file, "\n".join(lines) + "\n")
    return file
