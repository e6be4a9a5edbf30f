"""What is trained, tested and reported already, and which commands make the rest: read from the folders of runs."""

import itertools
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from util.errors import UserError
from util.files import write_text
from util.runs import folders
from util.runs.earlier import builds_on

ROOT = Path(__file__).resolve().parents[2]
# what changes no weight, and what changes no score
NOT_TRAINED = frozenset({"resume", "runs", "device", "threads", "workers", "test", "protocol", "train.save_every",
                         "train.log_every", "data_root"})  # fmt: skip
NOT_TESTED = frozenset({"resume", "runs", "device", "threads", "workers", "train", "episode", "scans", "model", "seed",
                        "weights", "data_root", "test.checkpoint", "test.save", "test.batch_size"})  # fmt: skip
# what every training of a fold has in common, whatever its method
SHARED = {"dataset", "data_root", "runs", "setting", "organs", "exclude", "profile", "device", "threads", "workers"}
REPORTED = "runs.txt"
LATER = Path("CHECKPOINT_OF_THE_RUN_ABOVE")  # stands in a dry run for what is not known yet


@dataclass(frozen=True)
class Plan:
    """What is to be there in the end.

    Attributes:
        updates: key=value, the same for every run; METHOD:key=value is for an earlier training by another method.
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
            self.known[more] = self.resolve([*self.own, *more])
        return self.known[more]

    @property
    def own(self) -> list[str]:
        """The updates without those for an earlier training (registration:train.steps=2000)."""
        return [update for update in self.updates if ":" not in update.partition("=")[0]]

    def with_updates(self, *more: str) -> "Plan":
        """The same with further updates."""
        return replace(self, updates=(*self.updates, *more), known={})

    def earlier(self, change: Mapping[str, Any]) -> "Plan":
        """Plan of the earlier training. If it uses another method, only options that belong to no method are kept."""
        kept = [update for update in self.updates if update.partition("=")[0] not in change]
        if "method" in change:
            prefix = f"{change['method']}:"
            meant = [update.removeprefix(prefix) for update in self.updates if update.startswith(prefix)]
            kept = [update for update in kept if update.partition("=")[0] in SHARED] + meant
        return replace(self, updates=(*(f"{key}={value}" for key, value in change.items()), *kept), known={})


def trained(plan: Plan, fold: int, seed: int) -> tuple[Path | None, Path | None]:
    """The checkpoint of a finished training with these settings; without one, the run that is to be resumed.

    Raises:
        UserError: such a run is being trained at the moment.
    """
    wanted, unfinished = plan.config(f"fold={fold}", f"seed={seed}"), {}
    # the organs that are tested matter to a training that must not see them
    ignored = NOT_TRAINED | ({"organs", "exclude"} if wanted["setting"] == 1 else set())
    for run in _alike(plan, wanted, "training", ignored):
        checkpoint = folders.latest_checkpoint(run)
        if folders.is_alive(run):
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
        found = Path(folders.configuration(run)["test"]["checkpoint"])
        if (run / "scores.csv").is_file() and folders.status(run) == "COMPLETED" and _same_place(found, checkpoint):
            return run
    return None


def _alike(plan: Plan, wanted: Mapping, program: str, ignored: frozenset[str]) -> Iterator[Path]:
    """Runs of a program, newest first, that differ in nothing that counts."""
    for run in folders.numbered(plan.folder(wanted)):
        if folders.program(run) == program:
            found = folders.configuration(run)
            same = _same_place(found["data_root"], wanted["data_root"])
            if same and not any(folders.differences(found, wanted, ignored)):
                yield run


def _same_place(one: str | Path, other: str | Path) -> bool:
    return (ROOT / one).resolve() == (ROOT / other).resolve()


def jobs(plan: Plan) -> list[tuple[int, int]]:
    """(fold, seed) of every training."""
    return list(itertools.product(plan.folds, plan.seeds))


def training(plan: Plan, fold: int, seed: int) -> Generator[list[str], None, tuple[Plan, Path]]:
    """Words of the commands that are still to run until one training is finished, earlier ones it builds on included.

    Each is asked for after the one before has run. Returns the plan with the earlier checkpoints in it, and the
    checkpoint; what is not there yet is called CHECKPOINT_OF_THE_RUN_ABOVE.
    """
    config = plan.config(f"fold={fold}", f"seed={seed}")
    for option, change in builds_on(config).items():
        section, key = option.split(".")
        if config[section][key] == "newest":
            _, checkpoint = yield from training(plan.earlier(change), fold, seed)
            plan = plan.with_updates(f"{option}={checkpoint}")
    checkpoint, unfinished = trained(plan, fold, seed)
    if checkpoint is None:
        resume = [f"resume={unfinished}"] if unfinished else []
        yield ["training.py", "with", *plan.own, f"fold={fold}", f"seed={seed}", *resume]
        checkpoint = trained(plan, fold, seed)[0] or LATER
    return plan, checkpoint


def missing(plan: Plan, fold: int, seed: int) -> Iterator[list[str]]:
    """The same until the training is tested, too."""
    plan, checkpoint = yield from training(plan, fold, seed)
    own = [*plan.own, f"fold={fold}", f"seed={seed}", f"test.checkpoint={checkpoint}"]
    for protocol in plan.protocols:
        if tested(plan, fold, protocol, checkpoint) is None:
            yield ["test.py", "with", *own, f"protocol={protocol}"]


def test_runs(plan: Plan) -> list[Path]:
    """The runs that the report is about.

    Raises:
        UserError: one is not there yet.
    """
    found = []
    for fold, seed in jobs(plan):
        if any(True for _ in missing(plan, fold, seed)):
            raise UserError(f"fold {fold}, seed {seed} is not trained and tested yet: no report without it")
        try:
            next(training(plan, fold, seed))
        except StopIteration as end:
            final, checkpoint = end.value
        found += [tested(final, fold, protocol, checkpoint) for protocol in plan.protocols]
    return found


def report_command(plan: Plan) -> list[str] | None:
    """Words of the report's command; None if it was made of these very runs (a repeated test is another run)."""
    found, out = [str(run) for run in test_runs(plan)], report_folder(plan)
    done = out / REPORTED
    if done.is_file() and done.read_text(encoding="utf-8").splitlines() == found:
        return None
    return ["-m", "util.report", *found, "--out", str(out)]


def note_report(plan: Plan) -> None:
    """Remember what the report was made of."""
    write_text(report_folder(plan) / REPORTED, "".join(f"{run}\n" for run in test_runs(plan)))


def report_folder(plan: Plan) -> Path:
    """`runs/<method>_<dataset>_report`, beside the folders of the folds."""
    folder = plan.folder(plan.config())
    return folder.with_name(f"{folder.name.rsplit('_fold', 1)[0]}_report")
