"""Two equal commands at once leave what one alone leaves, or the second says in one sentence that the first works.

predict.py, trainings, maps and converters have tests of their own for this.
"""

from pathlib import Path

import pytest

from data import check, phantom
from supervoxels import generate
from tests.commands import at_once


def _leave_with(main, arguments: list[str]) -> None:
    """A command that ends its process with its exit status."""
    raise SystemExit(main(arguments))


def files(folder: Path) -> dict[str, bytes]:
    """Name -> content, in which the folder has no name."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes().replace(bytes(folder), b"") for path in found}


@pytest.mark.parametrize("kind", ["phantom", "supervoxels"])
def test_who_comes_second_is_told_and_nothing_is_lost(kind, tiny, tmp_path, capfd):
    if kind == "phantom":
        call = phantom.main, ["--scans", "6", "--size", "32", "--slices", "6", "--jobs", "1"]
    else:
        call = generate.main, [str(tiny / "PHANTOM" / phantom.FOLDER), "--min-size", "300", "--jobs", "1"]
    place = 0 if kind == "phantom" else 1
    alone, both = ([*call[1][:place], str(tmp_path / name), *call[1][place:]] for name in ("alone", "both"))
    assert call[0](alone) == 0
    capfd.readouterr()
    codes = at_once(*[(_leave_with, call[0], both)] * 2)
    told = capfd.readouterr().err
    assert sorted(codes) in ([0, 0], [0, 1])
    assert told.count("works there; wait for its end") == sum(codes)
    assert files(tmp_path / "both") == files(tmp_path / "alone")


def test_checks_do_not_meet(tiny, capfd):
    call = check.main, ["PHANTOM", "--data-root", str(tiny), "--jobs", "1"]
    status = call[0](call[1])
    alone = capfd.readouterr().out
    assert at_once(*[(_leave_with, *call)] * 2) == [status] * 2
    assert sorted(capfd.readouterr().out.splitlines()) == sorted(2 * alone.splitlines())
