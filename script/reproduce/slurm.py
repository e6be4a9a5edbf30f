"""Slurm files: an array job with one task per training, and the job of the report that waits for it."""

import os
import shlex
from collections.abc import Mapping, Sequence

from script.reproduce.series import ROOT, Series
from util.files import write_text

OPTIONS = "--gres=gpu:1 --cpus-per-task=4 --time=24:00:00"  # unless the environment's SBATCH says otherwise


def write_jobs(series: Series, words: Sequence[str], environment: Mapping[str, str]) -> str:
    """Write train.sbatch and report.sbatch into the folder of the report, where the jobs' logs go, too.

    `words` are the command that does everything for FOLDS and SEEDS, `environment` its other variables. Returns the
    lines of shell that submit both.
    """
    folder = series.report_folder.resolve()

    def write(name: str, options: Sequence[str], *body: str) -> str:
        options = [f"--job-name={folder.name}", f"--output={folder}/{name}_%A_%a.log", *options]
        exports = [f"export {key}={shlex.quote(value)}" for key, value in environment.items()]
        head = ["#!/usr/bin/env bash", *(f"#SBATCH {option}" for option in options), "set -euo pipefail"]
        write_text(folder / f"{name}.sbatch", "\n".join([*head, f"cd {shlex.quote(str(ROOT))}", *exports, *body, ""]))
        return shlex.quote(str(folder / f"{name}.sbatch"))

    jobs = series.jobs()
    folds, seeds = (" ".join(map(str, numbers)) for numbers in zip(*jobs, strict=True))
    train = write(
        "train",
        # the program itself gets the signal two minutes before the end, and goes on when it is submitted again
        [f"--array=0-{len(jobs) - 1}", "--signal=B:TERM@120", *shlex.split(os.environ.get("SBATCH", OPTIONS))],
        f"folds=({folds}) seeds=({seeds})",
        "export FOLDS=${folds[$SLURM_ARRAY_TASK_ID]} SEEDS=${seeds[$SLURM_ARRAY_TASK_ID]}",
        f"exec {shlex.join(words)} --no-report",
    )
    everything = [
        f"export {name}={shlex.quote(' '.join(map(str, numbers)))}"
        for name, numbers in (("FOLDS", series.folds), ("SEEDS", series.seeds))
    ]
    report = write("report", [], *everything, f"exec {shlex.join(words)} --report-only")
    return f"job=$(sbatch --parsable {train})\nsbatch --dependency=afterok:$job {report}"
