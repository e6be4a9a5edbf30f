"""A data set of one's own by a file, and organs by name: settings, groups, the table of removed slices."""

import csv
import json

import pytest

import config
from tests.commands import only_run, refused, score, train
from util.dataset import Dataset, from_file
from util.errors import UserError


@pytest.fixture
def own(tiny, tmp_path):
    """A file that describes the tiny phantom as somebody's data."""
    row = config.DATASETS["PHANTOM"]
    folder = tiny / "PHANTOM"
    content = {
        "images": str(folder / "phantom_MR_normalized"),
        "supervoxels": str(folder / "supervoxels_5000"),
        "superpixels": str(folder / "superpixels_400"),
        "supervoxel_size": 300,
        "modality": "MR",
        "organs": dict(row.organs),
        "groups": {"paired": ["right kidney", "left kidney"]},
        "folds": [{"support": 4, "query": [1, 2, 3]}],
    }
    file = tmp_path / "MINE.json"
    file.write_text(json.dumps(content))
    yield file
    config.DATASETS.pop(str(file), None), config.FOLDS.pop(str(file), None)


def test_a_file_stands_for_a_data_set(own, tmp_path, capsys):
    runs = tmp_path / "runs"
    train(f"dataset={own}", f"runs={runs}", "train.steps=1")
    assert (runs / "adnet_MINE_fold0/1/checkpoints/step_000001.pt").is_file()
    score(f"dataset={own}", f"runs={runs}", "organs=paired")
    printed = capsys.readouterr().out
    assert "right kidney" in printed and "liver" not in printed


def test_a_training_on_a_file_goes_on_wherever_the_file_is_named_from(own, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    train(f"dataset={own}", f"runs={runs}", "train.steps=1")
    monkeypatch.chdir(tmp_path)
    train(f"dataset={own.name}", f"resume={runs}/adnet_MINE_fold0/1", "train.steps=2")
    assert (runs / "adnet_MINE_fold0/2/checkpoints/step_000002.pt").is_file()


def test_a_groups_absence_is_trained_and_the_removed_slices_are_told(tiny, tmp_path, caplog):
    with caplog.at_level("INFO"):
        train(f"data_root={tiny}", f"runs={tmp_path}", "train.steps=1", "setting=2", "organs=lower")
    with open(only_run(tmp_path) / "removed_slices.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert list(rows[0]) == ["scan", "slices", "right kidney", "left kidney", "removed", "leaking"]
    assert [row["scan"] for row in rows] == ["5", "6", "all"]
    for row in rows:
        assert row["leaking"] == "0" and int(row["removed"]) >= int(row["right kidney"]) > 0
    assert "setting 2, strict: " in caplog.text and "right kidney  left kidney" in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        score(f"data_root={tiny}", f"runs={tmp_path}", "organs=upper")
    assert "it may have seen liver, spleen" in caplog.text


@pytest.mark.parametrize(
    ("update", "expected"),
    [
        ("organs=heart", "organs=heart: there is no 'heart'; choose all, upper, lower, liver"),
        ("organs=liver,heart", "there is no 'heart'"),
        ("dataset=nowhere.json", "nowhere.json: cannot be read"),
    ],
)
def test_unknown_organs_and_files(tiny, tmp_path, capsys, update, expected):
    assert expected in refused(capsys, train, f"data_root={tiny}", f"runs={tmp_path}", update)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"organs": {}}, "at least one organ"),
        ({"organs": {"liver": "one"}}, "label ids from 1 to 32767"),
        ({"organs": {"liver": 2**31}}, "label ids from 1 to 32767"),
        ({"organs": {"liver": 1, "spleen": 1}}, "the label id 1 has two names"),
        ({"supervoxel_size": 0}, "supervoxel_size is 0; it must be at least 1"),
        ({"groups": {"upper": "liver"}}, "the group 'upper' is 'liver'"),
        ({"folds": None}, "folds is None"),
        ({"supervoxel_size": True}, "supervoxel_size is True"),
        ({"colour": "red"}, "there is no key 'colour'"),
    ],
)
def test_a_file_that_makes_no_sense(own, change, expected):
    own.write_text(json.dumps({**json.loads(own.read_text("utf-8")), **change}))
    with pytest.raises(UserError, match=expected):
        from_file(own)


def test_a_file_that_lacks_a_key_or_is_no_json(own):
    content = json.loads(own.read_text("utf-8"))
    del content["images"]
    own.write_text(json.dumps(content))
    with pytest.raises(UserError, match="the key 'images' is missing"):
        from_file(own)
    own.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        from_file(own)


def test_organs_that_would_be_files_elsewhere_or_one_file_are_refused():
    for names in (["../../escaped/liver"], ["left kidney", "left_kidney"], ["all"]):
        with pytest.raises(UserError, match=r"another name|rename one"):
            Dataset("X/images", "MR", 5000, {name: at for at, name in enumerate(names, 1)}).chosen("all")


def test_organs_are_chosen_by_name():
    row = config.DATASETS["SABS"]
    assert row.chosen("all") == dict(row.organs)
    assert row.chosen("upper") == {"spleen": 1, "liver": 6}
    assert row.chosen("liver, left kidney") == {"left kidney": 3, "liver": 6}
