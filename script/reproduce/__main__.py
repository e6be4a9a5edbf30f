"""All results of a method on a data set in one command: folds and seeds are trained, tested and reported.

    bash script/reproduce.sh adnet CHAOST2 encoder=resnet50 train.steps=30000

What is done is found on disk and not done again: a finished run with the same settings is kept, an interrupted one is
resumed, a test of that very checkpoint is not repeated. Environment: FOLDS="0 1" (default: all), SEEDS="2021 2022"
(default: one), PROTOCOLS="strict published" (default: strict), DATA=folder, SBATCH="--gres=gpu:1 --time=24:00:00".
A method that builds on earlier trainings (visa: a registration network, a first stage) gets them, too;
registration:train.steps=2000 is for that network alone. `--keep results/CHAOST2.csv` adds the scores of each test to
that file as they come, with what the training cost.
"""

import itertools
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import config
import models
from script.reproduce import slurm
from script.reproduce.series import REPORTED, ROOT, Series, Step, report_step, steps_of
from util.commands import guarded, parser
from util.dataset import choose_fold
from util.errors import UserError
from util.files import write_text
from util.report import kept


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


def run_all(series: Series, *, report: bool, keep: Path | None = None) -> dict[str, str]:
    """Run what is not done; one training that fails does not stop the others. Returns what went wrong.

    The rows of all tests, earlier ones too, are kept in the file `keep` if one is named.
    """
    failures: dict[str, str] = {}
    with Runner() as run:
        count = 0
        for steps in jobs_of(series):
            count += run_steps(steps, run, failures)
            if keep:
                tests = (test.done() for test in steps[-len(series.protocols) :])
                kept.keep(keep, filter(None, tests))
        if report and not failures:
            tests = tests_of(series)
            made = run_steps([report_step(series, tests)], run, failures)
            if made and not failures:  # what it was made of
                write_text(series.report_folder / REPORTED, "".join(f"{test.done()}\n" for test in tests))
            count += made
    if not count and not failures:
        print("everything is there already")
    if report and not failures:
        print(series.report_folder)
    return failures


def run_steps(steps: Sequence[Step], run: Callable[[Sequence[str]], bool], failures: dict[str, str]) -> int:
    """Run the steps that are not done, up to the first that fails; returns how many ran."""
    count = 0
    for step in steps:
        try:
            if step.done():
                continue
            words, count = step.words(), count + 1
            if not run(words):
                raise UserError(f"python {' '.join(words[:2])} ... ended with an error, see above")
        except UserError as error:
            failures[step.name] = str(error)
            break
    return count


def jobs_of(series: Series) -> list[list[Step]]:
    """The steps of every fold and seed."""
    return [steps_of(series, fold, seed) for fold, seed in series.jobs()]


def tests_of(series: Series) -> list[Step]:
    """The tests of every fold and seed: the last steps of each."""
    return [step for steps in jobs_of(series) for step in steps[-len(series.protocols) :]]


def make_series(method: str, dataset: str, updates: Sequence[str], environment: Mapping[str, str]) -> Series:
    """The series of the command line and the environment.

    Raises:
        UserError: a key, a value, a fold, a seed or a protocol makes no sense.
    """
    data = [f"data_root={environment['DATA']}"] if environment.get("DATA") else []
    updates = (f"method={method}", f"dataset={dataset}", *data, *updates)
    if not any(update.startswith("stage=") for update in updates) and models.last_stage(method) > 1:
        updates += (f"stage={models.last_stage(method)}",)
    series = Series(updates)
    base = series.options()
    for key in ("fold", "seed", "protocol", "resume", "test.checkpoint"):
        if any(update.startswith(f"{key}=") for update in updates):
            raise UserError(f"{key}=: is what this command chooses itself; see FOLDS, SEEDS, PROTOCOLS in --help")
    lines = config.FOLDS[base["dataset"]]
    folds = _numbers(environment, "FOLDS") or tuple(range(len(lines)))
    seeds = _numbers(environment, "SEEDS") or (base["seed"],)
    protocols = tuple((environment.get("PROTOCOLS") or "strict").split())
    for fold in folds:
        choose_fold(config.FOLDS, base["dataset"], fold)
    for protocol in protocols:
        series.options(f"protocol={protocol}")
    return replace(series, folds=folds, seeds=seeds, protocols=protocols)


def _numbers(environment: Mapping[str, str], name: str) -> tuple[int, ...]:
    try:
        return tuple(map(int, environment.get(name, "").split()))
    except ValueError as error:
        raise UserError(f"{name}={environment[name]}: whole numbers with spaces between them are expected") from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser(__doc__, "bash script/reproduce.sh")
    command.add_argument("method", metavar="METHOD", help="a file in models/")
    command.add_argument("dataset", metavar="DATASET", help="a row of DATASETS in config.py, or a .json file")
    command.add_argument("updates", metavar="KEY=VALUE", nargs="*", help="any option of config.py")
    command.add_argument("--keep", type=Path, metavar="FILE", help="add the scores to this file of kept rows")
    what = command.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the commands that would run")
    what.add_argument("--slurm", action="store_true", help="only write an array job, one task per fold and seed")
    what.add_argument("--no-report", action="store_true", help="train and test only")
    what.add_argument("--report-only", action="store_true", help="report only, once everything is tested")
    options = command.parse_intermixed_args(arguments)

    def work() -> dict[str, str]:
        series = make_series(options.method, options.dataset, options.updates, os.environ)
        if options.dry_run:
            steps = [*itertools.chain(*jobs_of(series)), report_step(series, tests_of(series))]
            commands = [shown(step.words()) for step in steps if not step.done()]
            print("\n".join(commands) or "everything is there already")
            return {}
        if options.slurm:
            words = [sys.executable, "-m", "script.reproduce", options.method, options.dataset, *options.updates]
            environment = {name: os.environ[name] for name in ("DATA", "PROTOCOLS") if name in os.environ}
            print(slurm.write_jobs(series, words, environment))
            return {}
        for step in tests_of(series) if options.report_only else ():
            if not step.done():
                raise UserError(f"{step.name} is not trained and tested yet: no report without it")
        return run_all(series, report=not options.no_report, keep=options.keep)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
