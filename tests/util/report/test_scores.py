"""Tables that add up, scores that survive a round trip."""

import math

import pytest

from tests.conftest import ROOT
from util.report import scores
from util.report.__main__ import main


def rows() -> list[dict]:
    values = {"liver": (0.5, 0.7), "spleen": (0.9, math.nan)}
    return [{"organ": o, "scan": i, "dice": d} for o, both in values.items() for i, d in enumerate(both)]


def test_means_are_over_organs_of_means_over_scans():
    assert scores.overall_mean(rows()) == pytest.approx((0.6 + 0.9) / 2)
    table = scores.organ_table({"ours": rows()}).splitlines()
    assert table[1].split() == ["liver", "0.600", "±", "0.141", "(n", "=", "2)"]
    assert table[2].split() == ["spleen", "0.900", "(n", "=", "1)"]
    assert table[-1].split() == ["mean", "0.750"]


def test_nothing_scored_is_shown_as_nothing():
    empty = [{"organ": "liver", "scan": 1, "dice": math.nan}]
    assert scores.organ_table({"ours": empty}).splitlines()[1].split() == ["liver", "-"]
    assert math.isnan(scores.overall_mean(empty))


def test_scores_survive_a_round_trip(tmp_path):
    scores.write_scores(tmp_path / "scores.csv", rows())
    back = scores.read_scores(tmp_path / "scores.csv")
    assert back[0]["dice"] == "0.500000" and back[-1]["dice"] == ""
    assert scores.overall_mean(back) == pytest.approx(0.75)


def test_comparing_runs(tmp_path, capsys):
    scores.write_scores(tmp_path / "scores.csv", rows())
    assert main([f"before={tmp_path}", f"after={tmp_path}"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["dice", "before", "after"]
    assert main([str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith("error:")


def test_readme_names_only_files_that_exist():
    """The map of the README is the tree."""
    tops = ("script/", "models/", "util/", "dataloaders/", "supervoxels/", "benchmarks/", "tests/")
    for word in set((ROOT / "README.md").read_text("utf-8").replace("`", " ").split()):
        path = word.rstrip(".,;:)")
        if path.startswith(tops) and not set(path) & set("*<{"):
            assert (ROOT / path).exists(), path
