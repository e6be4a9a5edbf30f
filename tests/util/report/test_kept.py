"""Rows that are kept of measured runs: what they say, that they replace older ones, and the tables made of them."""

import numpy as np
import pytest

from tests.commands import at_once
from tests.util.report.scored_runs import make_data, make_run, make_study
from tests.util.report.test_statistics import group
from util.errors import UserError
from util.report.__main__ import main
from util.report.gather import Comparison, RunGroup
from util.report.kept import HEADER, cost_of, keep, rows_of, side_by_side, with_the_best
from util.report.statistics import holm
from util.tables import read_csv


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("kept")
    return make_study(root, {"adnet": 3, "qnet": 1}, folds=2, seeds=1)


def scored(runs):
    return sorted(file.parent for file in runs.rglob("scores.csv"))


def test_a_row_says_what_was_trained_how_long_and_how_well(runs):
    row = rows_of(scored(runs)[0])[0]
    assert tuple(row) == HEADER
    assert (row["method"], row["fold"], row["organ"], row["steps"]) == ("adnet", "0", "liver", "60")
    assert float(row["seconds"]) == pytest.approx(60 / 5.0)  # five steps a second
    assert row["cpu_seconds"] == "" and float(row["dice"]) > 0  # the run says nothing of its processor


def test_a_resumed_training_costs_what_all_its_runs_cost(tmp_path):
    lines = "step,loss,steps_per_second,cpu_seconds\n"
    for number, resume, first in ((1, "", 10), (2, "elsewhere/1", 30)):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(f'{{"resume": "{resume}"}}')
        (folder / "metrics.csv").write_text(f"{lines}{first},1,2.0,7\n{first + 10},1,1.0,12\n")
    assert cost_of(tmp_path / "2") == {"seconds": "30", "cpu_seconds": "24"}
    assert cost_of(tmp_path / "1")["cpu_seconds"] == "12"
    assert cost_of(tmp_path / "3") == {"seconds": "", "cpu_seconds": ""}


def test_rows_are_kept_once_and_newer_ones_replace_them(runs, tmp_path):
    file, own = tmp_path / "results/SET.csv", scored(runs)
    assert keep(file, own[:1]) == 6 and keep(file, own[:1]) == 6
    before = file.read_text("utf-8")
    assert keep(file, own) == 24 and set(before.splitlines()) < set(file.read_text("utf-8").splitlines())
    data = tmp_path / "data"
    make_data(data, range(1, 4))
    checkpoint = rows_of(own[0]) and next(runs.rglob("adnet*fold0/1")) / "checkpoints/step_60.pt"
    again = make_run(tmp_path / "again", data, range(1, 4), 9, checkpoint=str(checkpoint))
    assert keep(file, [again]) == 24
    worse = [row for row in read_csv(file) if row["method"] == "adnet" and row["fold"] == "0"]
    assert max(float(row["dice"]) for row in worse) < 0.5


def test_several_who_keep_rows_at_once_lose_none(runs, tmp_path):
    """Every one reads what is there, adds its own and writes all: without a lock the last would win."""
    alone, both, own = tmp_path / "alone.csv", tmp_path / "both.csv", scored(runs)
    keep(alone, own)
    for _ in range(3):
        both.unlink(missing_ok=True)
        assert at_once(*[(keep, both, [run]) for run in own]) == [0] * len(own)
        assert both.read_bytes() == alone.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.csv", "both.csv"]


def test_a_page_gets_the_tables_at_its_marks(runs, tmp_path):
    file, page = tmp_path / "SET.csv", tmp_path / "README.md"
    assert main([str(runs), "--keep", str(file)]) == 0
    page.write_text(f"before\n<!-- tables of {file} -->\nstale\n<!-- end of tables -->\nafter\n")
    for _ in range(2):  # made again, it is the same
        assert main([str(file), "--into", str(page)]) == 0
        text = page.read_text("utf-8")
        assert text.startswith("before\n") and text.endswith("<!-- end of tables -->\nafter\n") and "stale" not in text
        assert "| adnet | 0, 1 | 1 | 60 | 0 |" in text and "qnet − adnet" in text
        assert text.count("#### ") == 3


def test_methods_stand_side_by_side_over_the_runs_that_all_of_them_have():
    def runs_of(label, runs, setting="1", steps="60"):
        rows = [{"fold": fold, "seed": seed} for fold, seed in runs]
        return RunGroup(label, label, {"setting": setting, "steps": steps}, rows)

    both, more = [("0", "1"), ("1", "1")], [("0", "1"), ("1", "1"), ("0", "2")]
    groups = [runs_of("a", both), runs_of("b", both[:1]), runs_of("c", more, steps="90")]
    groups.append(runs_of("d", both, setting="2"))
    found = [
        (where, {one.label: len(one.rows) for one in part.groups})
        for where, part in side_by_side(Comparison("SET", groups))
    ]
    assert found == [
        ("setting 1, folds 0, 1, seed 1", {"a": 2, "c": 2}),
        ("setting 1, fold 0, seed 1", {"a": 1, "b": 1, "c": 1}),
        ("setting 2, folds 0, 1, seed 1", {"d": 2}),
    ]
    ((where, _),) = side_by_side(Comparison("SET", [runs_of("c", more)]))
    assert where == "setting 1, fold 0, seeds 1, 2, fold 1, seed 1"


def test_only_the_best_is_compared_with_all_and_the_correction_spans_these():
    random = np.random.default_rng(1)
    values = {name: random.normal(at, 0.1, 8) for name, at in {"low": 0.2, "best": 0.8, "middle": 0.5}.items()}
    groups = [group(name, lambda o, scan, *_, n=name: values[n][scan]) for name in values]
    found = with_the_best(Comparison("SET", groups), "dice")
    assert [(d.first, d.second) for d in found] == [("best", "low"), ("best", "middle")]
    assert [d.p_holm for d in found] == pytest.approx(holm([d.p for d in found]))


def test_a_page_without_a_place_for_tables_is_refused(runs, tmp_path, capsys):
    (tmp_path / "README.md").write_text("nothing here\n")
    assert main([str(runs), "--into", str(tmp_path / "README.md")]) == 1
    assert "has no place for them" in capsys.readouterr().err


def test_a_report_can_be_made_of_kept_rows(runs, tmp_path, capsys):
    """The same means as of the runs themselves."""
    file = tmp_path / "SET.csv"
    keep(file, scored(runs))
    for source, out in ((runs, "runs"), (file, "rows")):
        assert main([str(source), "--out", str(tmp_path / out)]) == 0
    assert "the page has no overlays" in capsys.readouterr().err
    made = {
        out: sorted(
            tuple(row.values()) for row in read_csv(tmp_path / out / "summary.csv") if row["score"] in ("dice", "hd95")
        )
        for out in ("runs", "rows")
    }
    assert made["runs"] == made["rows"] and len(made["rows"]) == 12


def test_only_single_trainings_are_kept(runs, tmp_path):
    data = tmp_path / "data"
    make_data(data, range(1, 3))
    run = make_run(tmp_path / "run", data, range(1, 3), 1, checkpoint="untrained")
    with pytest.raises(UserError, match="single trainings"):
        rows_of(run)
