"""All results of a method on a data set in one command: folds and seeds are trained, tested and reported.

    bash script/reproduce.sh adnet CHAOST2 encoder=resnet50 train.steps=30000

What is done is found on disk and not done again: a finished run with the same settings is kept, an interrupted one is
resumed, a test of that very checkpoint is not repeated. Environment: FOLDS="0 1" (default: all), SEEDS="2021 2022"
(default: one), PROTOCOLS="strict legacy" (default: strict), DATA=folder, SBATCH="--gres=gpu:1 --time=24:00:00".
A method that builds on earlier trainings (visa: a registration network, a first stage) gets them, too;
registration:train.steps=2000 is for that network alone.
"""

import functools
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import config
import models
from script.reproduce import slurm
from script.reproduce.plan import ROOT, Plan, jobs, missing, note_report, report_command, report_folder, test_runs
from util.commands import guarded, parser
from util.dataset import choose_fold
from util.errors import UserError
from util.runs.experiment import resolved
from util.runs.folders import run_folder


class Runner:
    """Runs commands one after the other; SIGTERM and Ctrl-C reach the one that runs, and nothing starts after them."""

    def __init__(self) -> None:
        self.child: subprocess.Popen | None = None
        self.stopped = False
        self.before: dict = {}

    def __enter__(self) -> "Runner":
        self.before = {number: signal.signal(number, self._stop) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame) -> None:
        self.stopped = True
        # Ctrl-C in a terminal reaches the child by itself, and a second signal would kill it before its checkpoint
        if self.child is not None and not (number == signal.SIGINT and sys.stdin.isatty()):
            self.child.send_signal(signal.SIGTERM)

    def __call__(self, words: Sequence[str]) -> bool:
        """Run `python WORDS` from the repository's root; True if it succeeded.

        Raises:
            KeyboardInterrupt: a signal asked to stop.
        """
        print(shown(words), flush=True)
        self.child = subprocess.Popen([sys.executable, *words], cwd=ROOT)
        if self.stopped:  # between two commands
            self.child.send_signal(signal.SIGTERM)
        status = self.child.wait()
        self.child = None
        if self.stopped:
            raise KeyboardInterrupt
        return status == 0


def shown(words: Sequence[str]) -> str:
    """A command as a user would type it, in the repository's root."""
    python = Path(sys.executable)
    return shlex.join([str(python.relative_to(ROOT) if python.is_relative_to(ROOT) else python), *words])


def run_all(plan: Plan, *, report: bool) -> dict[str, str]:
    """Run what is missing; one training that fails does not stop the others. Returns what went wrong."""
    failures, done = {}, 0
    with Runner() as run:
        for fold, seed in jobs(plan):
            try:
                for words in missing(plan, fold, seed):
                    done += 1
                    if not run(words):
                        failures[f"fold {fold}, seed {seed}"] = f"{words[0]} ended with an error, see above"
                        break
            except UserError as error:
                failures[f"fold {fold}, seed {seed}"] = str(error)
        if report and not failures and (words := report_command(plan)):
            done += 1
            if run(words):
                note_report(plan)
            else:
                failures["report"] = "util.report ended with an error, see above"
    if not done and not failures:
        print("everything is there already")
    if report and not failures:
        print(report_folder(plan))
    return failures


def dry_run(plan: Plan) -> dict[str, str]:
    """Print the commands that would run."""
    commands = [words for fold, seed in jobs(plan) for words in missing(plan, fold, seed)]
    try:
        report = report_command(plan)
    except UserError:  # tests are to run first
        report = ["-m", "util.report", "RUNS_ABOVE", "--out", str(report_folder(plan))]
    commands += [report] if report else []
    print("\n".join(map(shown, commands)) or "everything is there already")
    return {}


def make_plan(method: str, dataset: str, updates: Sequence[str], environment: Mapping[str, str]) -> Plan:
    """The plan of the command line and the environment.

    Raises:
        UserError: a key, a value, a fold, a seed or a protocol makes no sense.
    """
    data = [f"data_root={environment['DATA']}"] if environment.get("DATA") else []
    updates = (f"method={method}", f"dataset={dataset}", *data, *updates)
    if not any(update.startswith("stage=") for update in updates) and models.last_stage(method) > 1:
        updates += (f"stage={models.last_stage(method)}",)
    plan = Plan(updates, (), (), (), functools.partial(resolved, tables=config), run_folder)
    base = plan.config()
    for key in ("fold", "seed", "protocol", "resume", "test.checkpoint"):
        if any(update.startswith(f"{key}=") for update in updates):
            raise UserError(f"{key}=: is what this command chooses itself; see FOLDS, SEEDS, PROTOCOLS in --help")
    lines = config.FOLDS[base["dataset"]]
    folds = _numbers(environment, "FOLDS") or tuple(range(len(lines)))
    seeds = _numbers(environment, "SEEDS") or (base["seed"],)
    protocols = tuple(environment.get("PROTOCOLS", "strict").split())
    for fold in folds:
        choose_fold(config.FOLDS, base["dataset"], fold)
    plan = replace(plan, folds=folds, seeds=seeds, protocols=protocols)
    for protocol in protocols:
        plan.config(f"protocol={protocol}")
    return plan


def _numbers(environment: Mapping[str, str], name: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, environment.get(name, "").split()))
    except ValueError as error:
        raise UserError(f"{name}={environment[name]}: whole numbers with spaces between them are expected") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser(__doc__, "bash script/reproduce.sh")
    command.add_argument("method", metavar="METHOD", help="a file in models/")
    command.add_argument(
        "dataset", metavar="DATASET", help="a row of DATASETS in config.py, or a data set's .json file"
    )
    command.add_argument("updates", metavar="KEY=VALUE", nargs="*", help="any option of config.py")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the commands that would run")
    what.add_argument(
        "--slurm", action="store_true", help="write an array job, one task per fold and seed, instead of running"
    )
    what.add_argument("--no-report", action="store_true", help="train and test only")
    what.add_argument("--report-only", action="store_true", help="report only, once everything is tested")
    options = command.parse_intermixed_args(arguments)

    def work() -> dict[str, str]:
        plan = make_plan(options.method, options.dataset, options.updates, os.environ)
        if options.dry_run:
            return dry_run(plan)
        if options.slurm:
            words = [sys.executable, "-m", "script.reproduce", options.method, options.dataset, *options.updates]
            environment = {name: os.environ[name] for name in ("DATA", "PROTOCOLS") if name in os.environ}
            print(slurm.write_jobs(report_folder(plan), words, environment, jobs(plan), ROOT))
            return {}
        if options.report_only:
            test_runs(plan)
        return run_all(plan, report=not options.no_report)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
