"""All results of a method on a data set in one command: folds and seeds are trained, tested and reported.

    bash script/reproduce.sh adnet CHAOST2 encoder=resnet50 train.steps=30000

What is done is found on disk and not done again: a finished run with the same settings is kept, an interrupted one is
resumed, a test of that very checkpoint is not repeated. Environment: FOLDS="0 1" (default: all), SEEDS="2021 2022"
(default: one), PROTOCOLS="strict legacy" (default: strict), DATA=folder, SBATCH="--gres=gpu:1 --time=24:00:00".
"""

import argparse
import itertools
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from util import runs, slurm
from util.commands import guarded
from util.dataset import choose_fold
from util.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
# what changes no weight, and what changes no score
NOT_TRAINED = frozenset({"resume", "runs", "device", "threads", "workers", "test", "protocol", "train.save_every",
                         "train.log_every", "data_root"})  # fmt: skip
NOT_TESTED = frozenset({"resume", "runs", "device", "threads", "workers", "train", "episode", "scans", "model", "seed",
                        "weights", "data_root", "test.checkpoint", "test.save", "test.batch_size"})  # fmt: skip
LATER = "CHECKPOINT_OF_THE_RUN_ABOVE"  # stands in a dry run for what is not known yet


@dataclass(frozen=True)
class Plan:
    """What is to be there in the end.

    Attributes:
        updates: key=value, the same for every run.
        folds, seeds, protocols: every combination of them.
        resolve: key=value ... -> whole configuration (config.py's).
        folder: configuration -> folder of its runs (config.py's).
    """

    updates: tuple[str, ...]
    folds: tuple[int, ...]
    seeds: tuple[int, ...]
    protocols: tuple[str, ...]
    resolve: Callable[[Sequence[str]], dict]
    folder: Callable[[Mapping], Path]
    known: dict = field(default_factory=dict)

    def config(self, *more: str) -> dict:
        """The configuration with further updates."""
        if more not in self.known:
            self.known[more] = self.resolve([*self.updates, *more])
        return self.known[more]


def trained(plan: Plan, fold: int, seed: int) -> tuple[Path | None, Path | None]:
    """The checkpoint of a finished training with these settings; without one, the run that is to be resumed.

    Raises:
        UserError: such a run is being trained at the moment.
    """
    wanted, unfinished = plan.config(f"fold={fold}", f"seed={seed}"), {}
    # the organs that are tested matter to a training that must not see them
    ignored = NOT_TRAINED | ({"organs", "exclude"} if wanted["setting"] == 1 else set())
    for run in _alike(plan, wanted, "training", ignored):
        checkpoint = runs.latest_checkpoint(run)
        if runs.is_alive(run):
            raise UserError(f"{run}: is being trained at the moment; wait for it, or interrupt it")
        if checkpoint is not None:
            step = int(checkpoint.stem.split("_")[1])
            if step >= wanted["train"]["steps"]:
                return checkpoint, None
            unfinished.setdefault(step, run)
    return None, unfinished[max(unfinished)] if unfinished else None


def tested(plan: Plan, fold: int, protocol: str, checkpoint: Path) -> Path | None:
    """The run that tested this checkpoint with these settings."""
    wanted = plan.config(f"fold={fold}", f"protocol={protocol}")
    for run in _alike(plan, wanted, "test", NOT_TESTED):
        found = Path(runs.configuration(run)["test"]["checkpoint"])
        if (run / "scores.csv").is_file() and runs.status(run) == "COMPLETED" and _same_place(found, checkpoint):
            return run
    return None


def _alike(plan: Plan, wanted: Mapping, program: str, ignored: frozenset[str]) -> Iterator[Path]:
    """Runs of a program, newest first, that differ in nothing that counts."""
    for run in runs.numbered(plan.folder(wanted)):
        if runs.program(run) == program:
            found = runs.configuration(run)
            same = _same_place(found["data_root"], wanted["data_root"])
            if same and not any(runs.differences(found, wanted, ignored)):
                yield run


def _same_place(one: str | Path, other: str | Path) -> bool:
    return (ROOT / one).resolve() == (ROOT / other).resolve()


def jobs(plan: Plan) -> list[tuple[int, int]]:
    """(fold, seed) of every training."""
    return list(itertools.product(plan.folds, plan.seeds))


def missing(plan: Plan, fold: int, seed: int) -> Iterator[list[str]]:
    """Words of the commands that are still to run for one training; each is asked for after the one before has run."""
    checkpoint, unfinished = trained(plan, fold, seed)
    own = [*plan.updates, f"fold={fold}", f"seed={seed}"]
    if checkpoint is None:
        resume = [f"resume={unfinished}"] if unfinished else []
        yield ["training.py", "with", *own, *resume]
        checkpoint = trained(plan, fold, seed)[0] or Path(LATER)
    for protocol in plan.protocols:
        if tested(plan, fold, protocol, checkpoint) is None:
            yield ["test.py", "with", *own, f"protocol={protocol}", f"test.checkpoint={checkpoint}"]


def test_runs(plan: Plan) -> list[Path]:
    """The runs that the report is about.

    Raises:
        UserError: one is not there yet.
    """
    found = []
    for (fold, seed), protocol in itertools.product(jobs(plan), plan.protocols):
        checkpoint, _ = trained(plan, fold, seed)
        run = checkpoint and tested(plan, fold, protocol, checkpoint)
        if run is None:
            raise UserError(
                f"fold {fold}, seed {seed} is not tested yet with protocol={protocol}: no report without it"
            )
        found.append(run)
    return found


def report_command(plan: Plan) -> list[str] | None:
    """Words of the report's command; None where it is newer than all scores."""
    found, out = test_runs(plan), report_folder(plan)
    newest = max((file.stat().st_mtime for file in out.glob("*")), default=0.0)
    if newest > max((run / "scores.csv").stat().st_mtime for run in found):
        return None
    return ["-m", "util.report", *map(str, found), "--out", str(out)]


def report_folder(plan: Plan) -> Path:
    """`runs/<method>_<dataset>_report`, beside the folders of the folds."""
    folder = plan.folder(plan.config())
    return folder.with_name(f"{folder.name.rsplit('_fold', 1)[0]}_report")


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
        """Run `python WORDS` from the repository's root; True where it succeeded.

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
            if not run(words):
                failures["report"] = "util.report ended with an error, see above"
    if not done and not failures:
        print("everything is there already")
    if report and not failures:
        print(report_folder(plan))
    return failures


def dry_run(plan: Plan) -> dict[str, str]:
    """Print the commands that would run."""
    for fold, seed in jobs(plan):
        for words in missing(plan, fold, seed):
            print(shown(words))
    try:
        words = report_command(plan)
    except UserError:  # tests are to run first
        words = ["-m", "util.report", "RUNS_ABOVE", "--out", str(report_folder(plan))]
    if words:
        print(shown(words))
    return {}


def make_plan(method: str, dataset: str, updates: Sequence[str], environment: Mapping[str, str]) -> Plan:
    """The plan of the command line and the environment.

    Raises:
        UserError: a key, a value, a fold, a seed or a protocol makes no sense.
    """
    # what a name stands for is written in config.py; imported here so that the rest never needs it
    import config

    data = [f"data_root={environment['DATA']}"] if environment.get("DATA") else []
    updates = (f"method={method}", f"dataset={dataset}", *data, *updates)
    base = config.resolved(updates)
    for key in ("fold", "seed", "protocol", "resume", "test.checkpoint"):
        if any(update.startswith(f"{key}=") for update in updates):
            raise UserError(f"{key}=: is what this command chooses itself; see FOLDS, SEEDS, PROTOCOLS in --help")
    lines = config.FOLDS[base["dataset"]]
    folds = _numbers(environment, "FOLDS") or tuple(range(len(lines)))
    seeds = _numbers(environment, "SEEDS") or (base["seed"],)
    protocols = tuple(environment.get("PROTOCOLS", "strict").split())
    for fold in folds:
        choose_fold(config.FOLDS, base["dataset"], fold)
    plan = Plan(updates, folds, seeds, protocols, config.resolved, config.run_folder)
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
    about, examples = __doc__.split("\n\n", 1)
    parser = argparse.ArgumentParser(
        prog="bash script/reproduce.sh",
        description=about,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("method", metavar="METHOD", help="a file in models/")
    parser.add_argument("dataset", metavar="DATASET", help="a row of DATASETS in config.py, or a data set's .json file")
    parser.add_argument("updates", metavar="KEY=VALUE", nargs="*", help="any option of config.py")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print the commands that would run")
    what.add_argument(
        "--slurm", action="store_true", help="write an array job, a task a fold and seed, instead of running"
    )
    what.add_argument("--no-report", action="store_true", help="train and test only")
    what.add_argument("--report-only", action="store_true", help="report only, once everything is tested")
    options = parser.parse_intermixed_args(arguments)

    def work() -> dict[str, str]:
        plan = make_plan(options.method, options.dataset, options.updates, os.environ)
        if options.dry_run:
            return dry_run(plan)
        if options.slurm:
            words = [sys.executable, "-m", "util.reproduce", options.method, options.dataset, *options.updates]
            environment = {name: os.environ[name] for name in ("DATA", "PROTOCOLS") if name in os.environ}
            print(slurm.write_jobs(report_folder(plan), words, environment, jobs(plan), ROOT))
            return {}
        if options.report_only:
            test_runs(plan)
        return run_all(plan, report=not options.no_report)

    return guarded(work)


if __name__ == "__main__":
    sys.exit(main())
