"""One way to name a checkpoint: a file, the folder of a run, or newest."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from util.errors import UserError
from util.runs.folders import differences, find_checkpoint, is_alive, latest_checkpoint, numbered


@pytest.fixture
def runs(tmp_path):
    """Three runs of a fold: the second is the newest that finished, the third was interrupted."""
    for number, (status, setting) in enumerate([("COMPLETED", 2), ("COMPLETED", 1), ("INTERRUPTED", 1)], start=1):
        run = tmp_path / str(number)
        (run / "checkpoints").mkdir(parents=True)
        for step in (9, 10):
            (run / f"checkpoints/step_{step:06d}.pt").touch()
        (run / "run.json").write_text(json.dumps({"status": status}))
        (run / "config.json").write_text(json.dumps({"setting": setting}))
    return tmp_path


def test_a_file_a_run_and_the_newest(runs):
    file = runs / "3/checkpoints/step_000009.pt"
    assert find_checkpoint(str(file), "resume") == file
    assert find_checkpoint(runs / "3", "resume") == runs / "3/checkpoints/step_000010.pt"
    assert find_checkpoint("newest", "resume", runs) == runs / "2/checkpoints/step_000010.pt"
    in_setting_2 = find_checkpoint("newest", "resume", runs, lambda options: options["setting"] == 2)
    assert in_setting_2 == runs / "1/checkpoints/step_000010.pt"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gone.pt", "gone.pt: no such checkpoint; name a file, or the folder of a run"),
        ("", "this folder holds no checkpoint"),
    ],
)
def test_what_is_not_there_is_said_with_the_option(tmp_path, name, expected):
    with pytest.raises(UserError, match=f"^train.start={tmp_path}.*{expected}"):
        find_checkpoint(tmp_path / name, "train.start")


def test_newest_without_a_finished_run(runs):
    (runs / "2/run.json").write_text(json.dumps({"status": "FAILED"}))
    with pytest.raises(UserError, match=f"no training run has finished; go on with resume={runs}/3"):
        find_checkpoint("newest", "train.start", runs, lambda options: options["setting"] == 1)
    with pytest.raises(UserError, match="newest: no such checkpoint"):  # a command that knows no fold
        find_checkpoint("newest", "--checkpoint")


def test_runs_and_steps_are_ordered_as_numbers(tmp_path):
    for number in (9, 10):
        (tmp_path / str(number)).mkdir()
    assert [run.name for run in numbered(tmp_path)] == ["10", "9"]
    (tmp_path / "checkpoints").mkdir()
    for step in (999_999, 1_000_000):
        (tmp_path / f"checkpoints/step_{step:06d}.pt").touch()
    assert latest_checkpoint(tmp_path).name == "step_1000000.pt"


@pytest.mark.parametrize(
    ("status", "ago", "alive"), [("RUNNING", 20, True), ("RUNNING", 40, False), ("FAILED", 20, False)]
)
def test_a_run_without_a_sign_of_life_for_half_a_minute_is_dead(tmp_path, status, ago, alive):
    beat = datetime.now(UTC).replace(tzinfo=None) - timedelta(seconds=ago)
    (tmp_path / "run.json").write_text(json.dumps({"status": status, "heartbeat": beat.isoformat()}))
    assert is_alive(tmp_path) == alive


def test_differences_are_named_by_their_whole_key():
    one, other = {"seed": 1, "train": {"steps": 3, "rate": 1}}, {"seed": 2, "train": {"steps": 4, "rate": 1, "new": 5}}
    assert set(differences(one, other, frozenset())) == {"seed", "train.steps"}
    assert set(differences(one, other, frozenset({"seed", "train.steps"}))) == set()
