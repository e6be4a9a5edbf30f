"""Check a prepared data set: files, grids, labels, supervoxels, folds, leaks of setting 2. Exit status 1 on errors.

    python -m data.check CHAOST2 --data-root data
    python -m data.check data/MINE/MINE.json

Prints a table of the scans, one of the folds (training slices that show a test organ, and those of them that setting 2
leaves under protocol=published), one of the slices that setting 2 would remove from all scans; warnings and errors.
"""

import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from config import DATASETS, FOLDS
from data.parts.convert import ranges
from data.parts.integrity import Findings, check_scan
from dataloaders.exclusion import removal_table
from util.commands import add_backend, backend_of, guarded, jobs, parser
from util.dataset import Dataset, Fold, choose_fold, from_file
from util.errors import UserError
from util.finding import numbered
from util.parallel import PROCESSES, Backend, each_scan
from util.tables import text_table

Told = Iterator[tuple[str, str]]  # "error" or "warning", and the sentence


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
    sentences: dict[str, list[str]] = {"warning": [], "error": []}
    chosen: dict[int, Fold] = {}
    for kind, sentence in (*single_scans(findings), *whole_set(dataset, root, findings)):
        sentences[kind].append(sentence)
    for index in range(len(folds)):
        try:
            chosen[index] = choose_fold({name: folds}, name, index)
        except UserError as error:
            sentences["error"].append(str(error))
    for kind, sentence in all_folds(dataset, chosen, findings):
        sentences[kind].append(sentence)
    if not folds:
        sentences["warning"].append("there are no folds")
    print(text_table(_scan_rows(findings)))
    if chosen:
        print("", text_table([_fold_row(index, fold, dataset, findings) for index, fold in chosen.items()]), sep="\n")
    print("", text_table(_setting_rows(dataset, findings)), sep="\n")
    for kind, told in sentences.items():
        for sentence in told:
            print(f"{kind}: {sentence}", file=sys.stderr)
    errors, warnings = len(sentences["error"]), len(sentences["warning"])
    print(f"\n{name}: {len(numbers)} scans, {errors} errors, {warnings} warnings")
    return errors


def single_scans(findings: Mapping[int, Findings]) -> Told:
    """What is wrong with single scans; a sentence that holds for several is told once."""
    scans: dict[tuple[str, str], list[int]] = {}
    for number, found in findings.items():
        for kind, sentences in (("error", found.errors), ("warning", found.warnings)):
            for sentence in sentences:
                scans.setdefault((kind, sentence), []).append(number)
    for (kind, sentence), numbers in scans.items():
        yield kind, f"{sentence} (scan{'s' * (len(numbers) > 1)} {ranges(numbers)})"


def whole_set(dataset: Dataset, root: Path, findings: Mapping[int, Findings]) -> Told:
    """What is wrong with the scans together."""
    folder, place = root / dataset.images, dataset.segment_folder(root)
    if alone := sorted(set(numbered(folder, "label")[0]) - set(findings)):
        yield "error", f"{folder}: labels without image: {ranges(alone)}"
    for kind, what, values in (
        ("error", "sizes", [found.size for found in findings.values() if found.size]),
        ("warning", "orientations", [found.directions for found in findings.values() if found.directions]),
    ):
        if len(set(values)) > 1:
            counts = ", ".join(f"{count} of {value}" for value, count in Counter(values).most_common())
            yield kind, f"the scans have different {what}: {counts}"
    for name in dataset.organs:
        if not any(found.facts.get(name) for found in findings.values()):
            yield "error", f"no scan shows {name}"
    without = [number for number, found in findings.items() if not found.supervoxels]
    command = f"python -m supervoxels.generate {folder} {place} --min-size {dataset.supervoxel_size}"
    if len(without) == len(findings):
        yield "warning", f"{place}: no supervoxels yet; the first training makes them, or: {command}"
        return
    if without:
        yield "error", f"{place}: no supervoxels of scans {ranges(without)}; make them with: {command}"
    try:
        size = json.loads((place / "parameters.json").read_text(encoding="utf-8"))["min_size"]
    except (OSError, ValueError, KeyError, TypeError):
        yield "warning", f"{place}: no parameters.json says how the supervoxels were made"
    else:
        if size != dataset.supervoxel_size:
            yield "warning", f"{place}: made with min_size {size}, config.py says {dataset.supervoxel_size}"


def all_folds(dataset: Dataset, folds: Mapping[int, Fold], findings: Mapping[int, Findings]) -> Told:
    """What is wrong with the folds, each alone and all together."""
    for index, fold in folds.items():
        if missing := sorted(fold.tested - set(findings)):
            yield "error", f"fold {index}: scans {ranges(missing)} are not there"
        if not fold.training(list(findings)):
            yield "error", f"fold {index}: no scan is left to train on"
        for organ in dataset.organs:
            if fold.support in findings and findings[fold.support].facts.get(organ) == 0:
                yield "error", f"fold {index}: the support scan {fold.support} does not show {organ}"
    queries = Counter(number for fold in folds.values() for number in fold.query)
    if twice := sorted(number for number, count in queries.items() if count > 1):
        yield "error", f"scans {ranges(twice)} are queries of several folds: they would count twice"
    never = sorted(set(findings) - set(queries))
    if never and folds:
        yield "warning", f"scans {ranges(never)} are in no fold's query: they are never tested"


def _scan_rows(findings: Mapping[int, Findings]) -> list[dict]:
    """What is known of every scan."""
    columns = list(dict.fromkeys(key for found in findings.values() for key in found.facts))
    return [
        {
            "scan": found.number,
            **{key: found.facts.get(key, "-") for key in columns},
            "state": "ERROR" if found.errors else "warning" if found.warnings else "ok",
        }
        for found in findings.values()
    ]


def _fold_row(index: int, fold: Fold, dataset: Dataset, findings: Mapping[int, Findings]) -> dict:
    """What setting 2 removes from a fold, and what the published rule leaves of it."""
    training = fold.training(list(findings))
    total = _removal(findings, training, dataset.organs, published=True)
    return {
        "fold": index,
        "support": fold.support,
        "query": ranges(sorted(fold.query)),
        "training scans": len(training),
        "training slices": total["slices"],
        "showing a test organ": total["removed"] + total["leaking"],
        "left by protocol=published": total["leaking"],
    }


def _setting_rows(dataset: Dataset, findings: Mapping[int, Findings]) -> list[dict]:
    """Slices of all scans that setting 2 would remove, for all organs and for each group."""
    rows = []
    for group in ("all", *dataset.groups):
        organs = dataset.chosen(group)
        strict, published = (_removal(findings, findings, organs, rule)["removed"] for rule in (False, True))
        row = {"organs": group, "which are": ", ".join(organs)}
        rows.append({**row, "removed, strict": strict, "removed, published": published})
    return rows


def _removal(
    findings: Mapping[int, Findings], numbers: Iterable[int], organs: Mapping[str, int], published: bool
) -> Mapping:
    """The last row of `removal_table`, for those of the scans that have a label."""
    labels = {number: findings[number].label for number in numbers if findings[number].label is not None}
    return removal_table(labels, organs, published)[-1] if labels else Counter()


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    command = parser(__doc__, "python -m data.check")
    help_text = "a row of DATASETS in config.py, or a data set's .json file"
    command.add_argument("dataset", metavar="DATASET", help=help_text)
    help_text = "holds CHAOST2/, SABS/, ..."
    command.add_argument("--data-root", type=Path, default=Path("data"), metavar="FOLDER", help=help_text)
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
