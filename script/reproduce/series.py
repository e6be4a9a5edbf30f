"""The steps to all results of a method on a data set, and which of them are done: read from the folders of runs."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import config
from util.errors import UserError
from util.runs import folders
from util.runs.earlier import builds_on
from util.runs.experiment import resolved

ROOT = Path(__file__).resolve().parents[2]
# what changes neither weights nor scores, no weight, no score
NEITHER = frozenset({"resume", "runs", "maps", "device", "threads", "workers", "data_root", "log"})
NOT_TRAINED = NEITHER | {"test", "train.save_every", "train.log_every"}
NOT_TESTED = NEITHER | {"train", "episode", "scans", "model", "seed", "weights"}
NOT_TESTED |= {f"test.{key}" for key in ("checkpoint", "save", "batch_size", "jobs", "backend", "scheduler")}
# what every training of a fold has in common, whatever its method
SHARED = {"dataset", "data_root", "runs", "maps", "setting", "organs", "device", "threads", "workers"}
REPORTED = "runs.txt"
LATER = Path("CHECKPOINT_OF_THE_RUN_ABOVE")  # stands in a dry run for what is not known yet


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: what fails if it fails.
        words: of the command after `python`, as the steps before it left things.
        done: what it has left, a checkpoint, a run or a report; None = it is still to run.
    """

    name: str
    words: Callable[[], list[str]]
    done: Callable[[], Path | None]


@dataclass(frozen=True)
class Series:
    """Trainings that differ in fold and seed, and their tests.

    Attributes:
        updates: key=value, the same for every run; METHOD:key=value is for an earlier training by another method.
        folds, seeds, protocols: every combination of them.
        above: option that names a checkpoint -> the step that makes it.
        known: configurations that were asked for.
    """

    updates: tuple[str, ...]
    folds: tuple[int, ...] = ()
    seeds: tuple[int, ...] = ()
    protocols: tuple[str, ...] = ()
    above: Mapping[str, Step] = field(default_factory=dict)
    known: dict = field(default_factory=dict)

    @property
    def own(self) -> list[str]:
        """The updates without those for an earlier training, with the checkpoints of the steps above."""
        plain = [update for update in self.updates if ":" not in update.partition("=")[0]]
        return plain + [f"{option}={step.done() or LATER}" for option, step in self.above.items()]

    def options(self, *more: str) -> dict:
        """The whole configuration with further updates."""
        words = (*self.own, *more)
        if words not in self.known:
            self.known[words] = resolved(words, config)
        return self.known[words]

    def jobs(self) -> list[tuple[int, int]]:
        """(fold, seed) of every training."""
        return list(itertools.product(self.folds, self.seeds))

    def earlier(self, change: Mapping[str, Any]) -> "Series":
        """Trainings that these build on; another method takes over only what is not the method's."""
        kept, above = [update for update in self.updates if update.partition("=")[0] not in change], self.above
        if "method" in change:
            prefix = f"{change['method']}:"
            meant = [update.removeprefix(prefix) for update in self.updates if update.startswith(prefix)]
            kept, above = [update for update in kept if update.partition("=")[0] in SHARED] + meant, {}
        return replace(self, updates=(*(f"{key}={value}" for key, value in change.items()), *kept), above=above)

    @property
    def report_folder(self) -> Path:
        """`runs/<method>_<dataset>_report`, beside the folders of the folds."""
        folder = folders.run_folder(self.options())
        return folder.with_name(f"{folder.name.rsplit('_fold', 1)[0]}_report")


def steps_of(series: Series, fold: int, seed: int) -> list[Step]:
    """The steps of one fold and seed, in order: earlier trainings, the training, a test for each protocol."""
    series, trainings = training_steps(series, fold, seed)
    return [*trainings, *(test_step(series, fold, seed, protocol, trainings[-1]) for protocol in series.protocols)]


def training_steps(series: Series, fold: int, seed: int) -> tuple[Series, list[Step]]:
    """The steps to a finished training, those of trainings that it builds on first; and the series that knows these."""
    steps, options = [], replace(series, above={}).options(f"fold={fold}", f"seed={seed}")
    for option, change in builds_on(options).items():
        section, key = option.split(".")
        if option not in series.above and options[section][key] == "newest":
            steps += training_steps(series.earlier(change), fold, seed)[1]
            series = replace(series, above={**series.above, option: steps[-1]})
    return series, [*steps, training_step(series, fold, seed)]


def training_step(series: Series, fold: int, seed: int) -> Step:
    """One training, which goes on if it was interrupted."""

    def words() -> list[str]:
        unfinished = trained(series, fold, seed)[1]
        resume = [f"resume={unfinished}"] if unfinished else []
        return ["training.py", "with", *series.own, f"fold={fold}", f"seed={seed}", *resume]

    return Step(f"fold {fold}, seed {seed}", words, lambda: trained(series, fold, seed)[0])


def test_step(series: Series, fold: int, seed: int, protocol: str, training: Step) -> Step:
    """The test of one training."""

    def words() -> list[str]:
        choice = [f"fold={fold}", f"seed={seed}", f"test.checkpoint={training.done() or LATER}", f"protocol={protocol}"]
        return ["test.py", "with", *series.own, *choice]

    def done() -> Path | None:
        checkpoint = training.done()
        return checkpoint and tested(series, fold, protocol, checkpoint)

    return Step(training.name, words, done)


def report_step(series: Series, tests: Sequence[Step]) -> Step:
    """The report of all tests; it is done if it was made of these very runs (a repeated test is another run)."""
    out = series.report_folder

    def words() -> list[str]:
        runs = dict.fromkeys(str(test.done() or "RUNS_ABOVE") for test in tests)
        return ["-m", "util.report", *runs, "--out", str(out)]

    def done() -> Path | None:
        runs, note = [str(test.done()) for test in tests], out / REPORTED
        return out if note.is_file() and note.read_text(encoding="utf-8").splitlines() == runs else None

    return Step("report", words, done)


def trained(series: Series, fold: int, seed: int) -> tuple[Path | None, Path | None]:
    """The checkpoint of a finished training with these settings; without one, the run that is to be resumed.

    Raises:
        UserError: such a run is being trained at the moment.
    """
    wanted, unfinished = series.options(f"fold={fold}", f"seed={seed}"), {}
    # the organs that are tested matter to a training that must not see them
    ignored = NOT_TRAINED | ({"organs"} if wanted["setting"] == 1 else set())
    for run in _alike(series, wanted, "training", ignored):
        checkpoint = folders.latest_checkpoint(run)
        if folders.is_alive(run):
            raise UserError(f"{run}: is being trained at the moment; wait for it, or interrupt it")
        if checkpoint is not None:
            step = int(checkpoint.stem.split("_")[1])
            if step >= wanted["train"]["steps"]:
                return checkpoint, None
            unfinished.setdefault(step, run)
    return None, unfinished[max(unfinished)] if unfinished else None


def tested(series: Series, fold: int, protocol: str, checkpoint: Path) -> Path | None:
    """The run that tested this checkpoint with these settings."""
    wanted = series.options(f"fold={fold}", f"protocol={protocol}")
    for run in _alike(series, wanted, "test", NOT_TESTED):
        found = Path(folders.configuration(run)["test"]["checkpoint"])
        if (run / "scores.csv").is_file() and folders.status(run) == "COMPLETED" and _same_place(found, checkpoint):
            return run
    return None


def _alike(series: Series, wanted: Mapping, program: str, ignored: frozenset[str]) -> Iterator[Path]:
    """Runs of a program, newest first, that differ in nothing that counts."""
    for run in folders.numbered(folders.run_folder(wanted)):
        if folders.program(run) == program:
            found = folders.configuration(run)
            same = _same_place(found["data_root"], wanted["data_root"])
            if same and not any(folders.differences(found, wanted, ignored)):
                yield run


def _same_place(one: str | Path, other: str | Path) -> bool:
    return (ROOT / one).resolve() == (ROOT / other).resolve()
