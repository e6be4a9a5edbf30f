"""Check a prepared data set: files, grids, labels, supervoxels, folds, leaks of setting 2. Exit status 1 on errors.

    python -m data.check CHAOST2 --data-root data
    python -m data.check data/MINE/MINE.json

Prints a table of the scans, one of the folds (training slices that show a test organ, and those of them that setting 2
leaves under protocol=published), one of the slices that setting 2 would remove from all scans; warnings and errors.
"""

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from config import DATASETS, FOLDS
from data.parts.convert import ranges
from data.parts.integrity import Findings, check_scan, together
from dataloaders.exclusion import removal_table
from util.commands import add_backend, backend_of, guarded, jobs, parser
from util.dataset import Dataset, Fold, choose_fold, from_file
from util.errors import UserError
from util.finding import numbered
from util.parallel import PROCESSES, Backend, each_scan
from util.tables import text_table


def check(
    name: str, dataset: Dataset, folds: Sequence[Mapping], root: Path, jobs: int = -1, backend: Backend = PROCESSES
) -> int:
    """Print the tables and what is wrong; return the number of errors.

    Raises:
        UserError: there is no scan.
    """
    numbers = dataset.scans(root)
    scans = {number: (dataset, root, number) for number in numbers}
    results = each_scan(check_scan, scans, jobs, name, lambda *scan: dataset.image_file(root, scan[-1]), backend)
    findings = {n: done.result or Findings(n, errors=[done.failure]) for n, done in results}
    errors, warnings = (
        [f"{text} (scan{'s' * (len(own) > 1)} {ranges(own)})" for text, own in together(findings, kind)]
        for kind in ("errors", "warnings")
    )
    set_errors, set_warnings = whole_set(dataset, root, findings)
    lines, fold_errors, fold_warnings = check_folds(name, dataset, folds, findings)
    columns = list(dict.fromkeys(key for found in findings.values() for key in found.facts))
    print(
        text_table(
            [
                {
                    "scan": found.number,
                    **{key: found.facts.get(key, "-") for key in columns},
                    "state": "ERROR" if found.errors else "warning" if found.warnings else "ok",
                }
                for found in findings.values()
            ]
        )
    )
    print(*lines, sep="\n")
    errors, warnings = errors + set_errors + fold_errors, warnings + set_warnings + fold_warnings
    for kind, sentences in (("warning", warnings), ("error", errors)):
        for sentence in sentences:
            print(f"{kind}: {sentence}", file=sys.stderr)
    print(f"\n{name}: {len(numbers)} scans, {len(errors)} errors, {len(warnings)} warnings")
    return len(errors)


def whole_set(dataset: Dataset, root: Path, findings: Mapping[int, Findings]) -> tuple[list[str], list[str]]:
    """Errors and warnings about the scans together."""
    errors, warnings = [], []
    folder = root / dataset.images
    alone = sorted(set(numbered(folder, "label")[0]) - set(findings))
    if alone:
        errors.append(f"{folder}: labels without image: {ranges(alone)}")
    for what, values in (
        ("sizes", [found.size for found in findings.values() if found.size]),
        ("orientations", [found.directions for found in findings.values() if found.directions]),
    ):
        if len(set(values)) > 1:
            kinds = ", ".join(f"{count} of {value}" for value, count in Counter(values).most_common())
            (errors if what == "sizes" else warnings).append(f"the scans have different {what}: {kinds}")
    for name in dataset.organs:
        if not any(found.facts.get(name) for found in findings.values()):
            errors.append(f"no scan shows {name}")
    without = [number for number, found in findings.items() if not found.supervoxels]
    place = dataset.segment_folder(root)
    if without:
        command = f"python -m supervoxels.generate {folder} {place} --min-size {dataset.supervoxel_size}"
        if len(without) == len(findings):
            warnings.append(f"{place}: no supervoxels yet; the first training makes them, or: {command}")
        else:
            errors.append(f"{place}: no supervoxels of scans {ranges(without)}; make them with: {command}")
    if len(without) < len(findings):
        warnings += _generation(place, dataset)
    return errors, warnings


def _generation(place: Path, dataset: Dataset) -> list[str]:
    """Warnings about how the supervoxels were made."""
    try:
        size = json.loads((place / "parameters.json").read_text(encoding="utf-8"))["min_size"]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{place}: no parameters.json says how the supervoxels were made"]
    if size != dataset.supervoxel_size:
        return [f"{place}: made with min_size {size}, config.py says {dataset.supervoxel_size}"]
    return []


def check_folds(
    name: str, dataset: Dataset, folds: Sequence[Mapping], findings: Mapping[int, Findings]
) -> tuple[list[str], list[str], list[str]]:
    """Tables of folds and settings as lines; errors; warnings."""
    errors, warnings, rows, chosen = [], [], [], []
    for index in range(len(folds)):
        try:
            chosen.append(choose_fold({name: folds}, name, index))
        except UserError as error:
            errors.append(str(error))
    for index, fold in enumerate(chosen):
        errors += _fold_errors(index, fold, dataset, findings)
        rows.append(_leaks(index, fold, dataset, findings))
    queries = Counter(number for fold in chosen for number in fold.query)
    twice, never = sorted(n for n, count in queries.items() if count > 1), sorted(set(findings) - set(queries))
    if twice:
        errors.append(f"scans {ranges(twice)} are queries of several folds: they would count twice")
    if never and chosen:
        warnings.append(f"scans {ranges(never)} are in no fold's query: they are never tested")
    if not folds:
        warnings.append("there are no folds")
    tables = ["", text_table(rows)] if rows else []
    return [*tables, "", text_table(_settings(dataset, findings))], errors, warnings


def _fold_errors(index: int, fold: Fold, dataset: Dataset, findings: Mapping[int, Findings]) -> list[str]:
    missing = sorted(fold.tested - set(findings))
    errors = [f"fold {index}: scans {ranges(missing)} are not there"] if missing else []
    if not fold.training(list(findings)):
        errors.append(f"fold {index}: no scan is left to train on")
    support = findings.get(fold.support)
    absent = [organ for organ in dataset.organs if support and support.facts.get(organ) == 0]
    return errors + [f"fold {index}: the support scan {fold.support} does not show {organ}" for organ in absent]


def _presence(findings: Mapping[int, Findings], numbers: Sequence[int]) -> dict:
    return {number: findings[number].label for number in numbers if findings[number].label is not None}


def _leaks(index: int, fold: Fold, dataset: Dataset, findings: Mapping[int, Findings]) -> dict:
    """A row of the fold table: what setting 2 removes, and what the published rule leaves of it."""
    training = fold.training(list(findings))
    labels = _presence(findings, training)
    row = {"fold": index, "support": fold.support, "query": ranges(sorted(fold.query)), "training scans": len(training)}
    total = removal_table(labels, dataset.organs, published=True)[-1] if labels else {}
    row["training slices"] = total.get("slices", 0)
    row["showing a test organ"] = total.get("removed", 0) + total.get("leaking", 0)
    return {**row, "left by protocol=published": total.get("leaking", 0)}


def _settings(dataset: Dataset, findings: Mapping[int, Findings]) -> list[dict]:
    """Slices of all scans that setting 2 would remove, for all organs and for each group."""
    labels, rows = _presence(findings, list(findings)), []
    for group in ("all", *dataset.groups):
        organs = dataset.chosen(group)
        counts = {
            f"removed, {protocol}": removal_table(labels, organs, protocol == "published")[-1]["removed"]
            if labels
            else 0
            for protocol in ("strict", "published")
        }
        rows.append({"organs": group, "which are": ", ".join(organs), **counts})
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser(__doc__, "python -m data.check")
    command.add_argument(
        "dataset", metavar="DATASET", help="a row of DATASETS in config.py, or a data set's .json file"
    )
    command.add_argument(
        "--data-root", type=Path, default=Path("data"), metavar="FOLDER", help="holds CHAOST2/, SABS/, ..."
    )
    command.add_argument("--jobs", type=jobs, default=-1, help="scans at once (default: one per core)")
    add_backend(command.add_argument)
    options = command.parse_args(arguments)
    where = options.data_root, options.jobs
    return guarded(lambda: check(options.dataset, *find(options.dataset), *where, backend_of(options)))


def find(name: str) -> tuple[Dataset, Sequence[Mapping]]:
    """A data set and its folds by name or file.

    Raises:
        UserError: there is none.
    """
    if name.endswith(".json"):
        return from_file(name)
    if name not in DATASETS:
        raise UserError(f"{name}: no such data set, config.py knows {', '.join(DATASETS)}; or name a .json file")
    return DATASETS[name], FOLDS.get(name, [])


if __name__ == "__main__":
    sys.exit(main())
