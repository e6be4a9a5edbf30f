"""Which runs are compared: every scores.csv below the given folders, grouped by what was tested."""

import functools
from collections import namedtuple
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

from util.errors import UserError
from util.evaluation.metrics import COLUMNS
from util.report.scores import SAMPLE, as_frame, read_scores

# Runs that differ in one of these are never averaged; column of scores.csv -> how a value is shown behind a method.
IDENTITY = {"weights": "{}", "encoder": "{}", "setting": "setting {}", "protocol": "{}", "pairing": "{}",
            "steps": "{} steps", "shots": "shots {}", "shots_of": "of {}", "supports": "supports {}",
            "members": "ensemble of {}"}  # fmt: skip

Kind = namedtuple("Kind", "dataset name method identity")  # what rows have in common that are averaged


@dataclass(frozen=True)
class RunGroup:
    """Runs of one method under one protocol: all their folds and seeds.

    Attributes:
        label: the name it has in tables, unique in its data set.
        method: as scores.csv has it.
        identity: values of IDENTITY.
        rows: of all its scores.csv; `run` is the folder they came from.
    """

    label: str
    method: str
    identity: dict[str, str]
    rows: list[dict[str, str]]

    @functools.cached_property
    def frame(self) -> pandas.DataFrame:
        """The rows, scores as numbers."""
        return as_frame(self.rows)

    def values(self, column: str, run: str = "") -> list[str]:
        """Different values of a column, of all runs or of one; numbers in their order."""
        found = {row.get(column) or "" for row in self.rows if not run or row["run"] == run}
        return sorted(found - {""}, key=lambda text: (len(text), text))


@dataclass(frozen=True)
class Comparison:
    """The groups of one data set, with what they have in common."""

    dataset: str
    groups: list[RunGroup]

    @property
    def organs(self) -> list[str]:
        """Organs in the order in which they first appear."""
        return list(dict.fromkeys(row["organ"] for group in self.groups for row in group.rows))

    @property
    def scores(self) -> list[str]:
        """Scores that some row has."""
        return [name for name in COLUMNS if any(group.frame[name].notna().any() for group in self.groups)]


def named_folders(arguments: Sequence[str]) -> list[tuple[str, Path]]:
    """(name or "", folder, or file of kept rows) of every `[NAME=]RUNS`.

    Raises:
        UserError: no such folder or file.
    """
    named = []
    for argument in arguments:
        # a folder may have = in its name
        name, folder = ("", argument) if Path(argument).exists() or "=" not in argument else argument.split("=", 1)
        if not Path(folder).exists():
            raise UserError(
                f"{folder}: no such folder; name a run, or a folder of runs, that test.py wrote, or a file of kept rows"
            )
        named.append((name, Path(folder)))
    return named


def gather(arguments: Sequence[str]) -> tuple[list[Comparison], list[str]]:
    """All runs below `[NAME=]RUNS` by data set, and what the reader must know about them, in sentences.

    Raises:
        UserError: no such folder, no scores.csv in it, or one that is damaged.
    """
    kinds: dict[Kind, dict[tuple, dict[str, str]]] = {}
    warnings: dict[str, None] = {}
    for name, row in _rows(arguments):
        kind = Kind(row.get("dataset", ""), name, row.get("method", ""), tuple(_identity(row).values()))
        sample, known = tuple(row.get(part, "") for part in SAMPLE), kinds.setdefault(kind, {})
        if sample in known and known[sample]["run"] != row["run"]:
            warnings[
                f"{known[sample]['run']} and the newer {row['run']} score the same scans with the same method, fold "
                "and seed; only the newer one counts (to compare them, name them: A=RUN B=RUN)"
            ] = None
        known[sample] = row
    datasets = list(dict.fromkeys(kind.dataset for kind in kinds))
    if len(datasets) > 1:
        names = ", ".join(short_name(dataset) for dataset in datasets)
        warnings[f"the runs are of different data sets ({names}); each has tables of its own"] = None
    comparisons = [_comparison(dataset, kinds) for dataset in datasets]
    return comparisons, [*warnings, *(text for comparison in comparisons for text in _uneven(comparison))]


def short_name(dataset: str) -> str:
    """Name of a data set that may be given by its file."""
    return Path(dataset).stem if dataset.endswith(".json") else dataset or "unknown data set"


def _rows(arguments: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
    """Name and row of every scores.csv, oldest first; a file that is named twice counts once."""
    found = {}
    for name, folder in named_folders(arguments):
        files = sorted(folder.rglob("scores.csv"), key=lambda file: (file.stat().st_mtime, str(file)))
        files = [folder] if folder.is_file() else files
        if not files:
            raise UserError(f"{folder}: holds no scores.csv, neither itself nor below; run test.py first")
        for file in files:
            found.setdefault((name, file.resolve()), file)
    for (name, _), file in found.items():
        for row in read_scores(file):
            # in a file of kept rows, which are of many runs, each is named by its checkpoint
            run = str(file.parent) if file.name == "scores.csv" else row.get("checkpoint_sha256", "")
            yield name, {**row, "run": run}


def _identity(row: dict[str, str]) -> dict[str, str]:
    checkpoint = row.get("checkpoint", "")
    derived = {
        "weights": "untrained" if checkpoint == "untrained" else "",
        "members": str(checkpoint.count("+") + 1) if "+" in checkpoint else "",
    }
    return {name: derived.get(name, row.get(name) or "") for name in IDENTITY}


def _comparison(dataset: str, kinds: dict[Kind, dict[tuple, dict[str, str]]]) -> Comparison:
    """The groups of a data set, with labels that say only what sets them apart."""
    own = {kind: list(rows.values()) for kind, rows in kinds.items() if kind.dataset == dataset}
    differs = [len(set(values)) > 1 for values in zip(*(kind.identity for kind in own), strict=True)]
    groups = []
    for kind, rows in own.items():
        parts = zip(IDENTITY.values(), kind.identity, differs, strict=True)
        shown = [form.format(value) for form, value, said in parts if said and value]
        several = len({other.method for other in own if other.name == kind.name}) > 1
        name = " ".join(filter(None, [kind.name, kind.method if several or not kind.name else ""])) or "unnamed"
        label = f"{name} ({', '.join(shown)})" if shown else name
        groups.append(RunGroup(label, kind.method, dict(zip(IDENTITY, kind.identity, strict=True)), rows))
    return Comparison(short_name(dataset), groups)


def _uneven(comparison: Comparison) -> list[str]:
    """Sentences on groups that were scored on fewer scans than others, so that their means say something else."""
    scans = {group.label: {(row.get("fold"), row["scan"]) for row in group.rows} for group in comparison.groups}
    every = set().union(*scans.values())
    return [
        f"{comparison.dataset}: {label} was scored on {len(own)} of {len(every)} scans; its means are not over the "
        "scans of the others, while differences between two methods are over the scans that both have"
        for label, own in scans.items()
        if own != every
    ]
