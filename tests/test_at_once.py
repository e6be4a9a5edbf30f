"""Two equal commands at once leave what one alone leaves, or the second says in one sentence that the first works.

predict.py, trainings and kept rows have tests of their own for this.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from data import chaost2, check, cmr, custom, maps, phantom, phantom_raw, sabs
from supervoxels import generate
from tests.commands import at_once
from tests.util.report.scored_runs import make_study
from util.report import __main__ as report

RAW = {"chaost2": chaost2, "sabs": sabs, "cmr": cmr}
OPTIONS = {
    "chaost2": ["--spacing", "10", "10", "30", "--size", "32"],
    "sabs": ["--size", "16"],
    "cmr": ["--spacing", "7", "7", "16", "--size", "32"],
}
Call = tuple[Callable, list[str], list[str]]  # the command, its words before those for OUT, and after


def _leave_with(main, arguments: list[str]) -> None:
    """A command that ends its process with its exit status."""
    raise SystemExit(main(arguments))


def files(folder: Path) -> dict[str, bytes]:
    """Name -> content, in which the folder has no name."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes().replace(bytes(folder), b"") for path in found}


def raw_scans(kind: str, tiny: Path, folder: Path) -> Call:
    """A converter with three tiny raw scans."""
    for index in range(3):
        phantom_raw.WRITERS[kind](folder / "raw", 1, index, (8, 32, 32))
    return RAW[kind].main, [str(folder / "raw")], [*OPTIONS[kind], "--jobs", "1"]


def own_scans(kind: str, tiny: Path, folder: Path) -> Call:
    """data.custom with images and labels in folders of their own."""
    for part in ("image", "label"):
        (folder / part).mkdir()
        for file in (tiny / "PHANTOM" / phantom.FOLDER).glob(f"{part}_*"):
            shutil.copy(file, folder / part)
    return custom.main, [str(folder / "image"), str(folder / "label")], ["--size", "32", "--jobs", "1"]


def synthetic(kind: str, tiny: Path, folder: Path) -> Call:
    """The phantom."""
    return phantom.main, [], ["--scans", "6", "--size", "32", "--slices", "6", "--jobs", "1"]


def segments(kind: str, tiny: Path, folder: Path) -> Call:
    """Supervoxels."""
    return generate.main, [str(tiny / "PHANTOM" / phantom.FOLDER)], ["--min-size", "300", "--jobs", "1"]


def mapped(kind: str, tiny: Path, folder: Path) -> Call:
    """Memory maps; who comes second waits."""
    words = ["PHANTOM", "--data-root", str(tiny), "--labels", "--jobs", "1", "--backend", "threading", "--maps"]
    return maps.main, words, []


def compared(kind: str, tiny: Path, folder: Path) -> Call:
    """A report; several may write the same one."""
    return report.main, [str(make_study(folder / "study", {"adnet": 3}, folds=1, seeds=1)), "--out"], []


MADE = {
    "phantom": synthetic,
    **dict.fromkeys(RAW, raw_scans),
    "custom": own_scans,
    "supervoxels": segments,
    "maps": mapped,
    "report": compared,
}


@pytest.mark.parametrize("kind", list(MADE))
def test_who_comes_second_is_told_and_nothing_is_lost(kind, tiny, tmp_path, capfd):
    main, before, after = MADE[kind](kind, tiny, tmp_path)
    # data.custom names its data set after the folder, so both have one name
    alone, both = tmp_path / "alone/OUT", tmp_path / "both/OUT"
    assert main([*before, str(alone), *after]) == 0
    capfd.readouterr()
    codes = at_once(*[(_leave_with, main, [*before, str(both), *after])] * 2)
    told = capfd.readouterr().err
    assert sorted(codes) in ([0, 0], [0, 1]), told
    assert told.count("works there; wait for its end") == sum(codes)
    left, expected = files(both), files(alone)
    if kind == "maps":  # its record tells the times of its files
        for found in (left, expected):
            assert len(found.pop(next(name for name in found if name.endswith("maps.json")))) > 100
    assert left == expected and len(expected) > 3


def test_checks_do_not_meet(tiny, capfd):
    call = check.main, ["PHANTOM", "--data-root", str(tiny), "--jobs", "1"]
    status = call[0](call[1])
    alone = capfd.readouterr().out
    assert at_once(*[(_leave_with, *call)] * 2) == [status] * 2
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(2 * alone.splitlines())
