"""One command for all folds: interrupted, resumed, and then nothing more to do; the same as Slurm jobs."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest

import config
import test as testing
import training
from script.reproduce import __main__ as reproduce
from tests.commands import SMALL
from tests.conftest import ROOT
from util.report import __main__ as report
from util.runs import folders

OPTIONS = [update for update in SMALL if not update.startswith(("dataset=", "train.steps="))]
OPTIONS += ["train.steps=40", "train.save_every=5"]


@pytest.fixture(scope="module")
def own(tiny, tmp_path_factory):
    """The words of the command for the tiny phantom with two folds, and the folder of its runs."""
    folder = tmp_path_factory.mktemp("reproduced with blanks")
    content = {
        "images": str(tiny / "PHANTOM/phantom_MR_normalized"),
        "supervoxels": str(tiny / "PHANTOM/supervoxels_5000"),
        "superpixels": str(tiny / "PHANTOM/superpixels_400"),
        "supervoxel_size": 300,
        "modality": "MR",
        "organs": {"liver": 1, "spleen": 4},
        "folds": [{"support": 4, "query": [1, 2]}, {"support": 1, "query": [4, 5]}],
    }
    file = folder / "MINE.json"
    file.write_text(json.dumps(content))
    yield ["adnet", str(file), *OPTIONS, f"runs={folder}"], folder
    config.DATASETS.pop(str(file), None), config.FOLDS.pop(str(file), None)


@pytest.fixture(scope="module")
def interrupted(own):
    """The command stopped by SIGTERM in the middle of its first training; returns its exit status and output."""
    words, folder = own
    process = subprocess.Popen(
        [sys.executable, "-m", "script.reproduce", *words, "--no-report"],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8",
    )  # fmt: skip
    first, end = folder / "adnet_MINE_fold0/1", time.monotonic() + 120
    while not folders.latest_checkpoint(first):
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    return process.wait(60), process.stdout.read()


def in_this_process(_, words: list[str]) -> bool:
    """`python WORDS` without the seconds that a process takes to start."""
    if words[0] == "-m":
        return report.main(words[2:]) == 0
    {"training.py": training, "test.py": testing}[words[0]].experiment.run_commandline(words)
    return True


@pytest.fixture(scope="module")
def finished(own, interrupted):
    """The same command once more, to its end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reproduce.Runner, "__call__", in_this_process)
        assert reproduce.main(own[0]) == 0
    return own[1]


def history(folder, fold: int) -> list[tuple[str, str]]:
    return [
        (folders.program(run), folders.status(run))
        for run in reversed(folders.numbered(folder / f"adnet_MINE_fold{fold}"))
    ]


def test_sigterm_stops_after_a_checkpoint(own, interrupted):
    status, output = interrupted
    assert status == 130 and "run the same command to make the rest" in output
    assert not (own[1] / "adnet_MINE_fold1").exists()


def test_what_was_interrupted_is_resumed_and_everything_is_tested(finished):
    assert history(finished, 0) == [("training", "INTERRUPTED"), ("training", "COMPLETED"), ("test", "COMPLETED")]
    assert history(finished, 1) == [("training", "COMPLETED"), ("test", "COMPLETED")]
    first, second = finished / "adnet_MINE_fold0/1", finished / "adnet_MINE_fold0/2"
    assert folders.configuration(second)["resume"] == str(first)
    assert folders.latest_checkpoint(second).name == "step_000040.pt"
    assert (finished / "adnet_MINE_fold0/3/scores.csv").is_file()


def test_a_second_call_does_nothing_and_other_settings_do(own, finished, capsys, monkeypatch):
    before = sorted(finished.rglob("*"))
    assert finished / "adnet_MINE_report/report.html" in before
    assert reproduce.main(own[0]) == 0
    assert "everything is there already" in capsys.readouterr().out and sorted(finished.rglob("*")) == before
    words = [word for word in own[0] if word != "train.steps=40"]
    assert reproduce.main([*words, "train.steps=40", "threads=2", "test.save=True", "--dry-run"]) == 0
    assert capsys.readouterr().out == "everything is there already\n"
    for changes, environment, expected in (
        (["train.steps=40", "organs=liver"], {}, ["test.py", "test.py"]),
        (["train.steps=70"], {"FOLDS": "0"}, ["training.py", "test.py"]),
        (["train.steps=40", "train.learning_rate=0.01"], {"FOLDS": "1"}, ["training.py", "test.py"]),
        (["train.steps=40"], {"SEEDS": "2021 7", "FOLDS": "1"}, ["training.py", "test.py"]),
        (["train.steps=40"], {"PROTOCOLS": "strict published", "FOLDS": "1"}, ["test.py"]),
    ):
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            assert reproduce.main([*words, *changes, "--dry-run"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[1] for line in lines] == [*expected, "-m"], changes
    assert sorted(finished.rglob("*")) == before


def test_one_training_that_cannot_go_on_does_not_stop_the_others(own, finished, capsys):
    """Fold 0 is being trained elsewhere; the scores of fold 1 are gone and come back."""
    file = finished / "adnet_MINE_fold0/2/run.json"
    content = file.read_text("utf-8")
    entry = {**json.loads(content), "status": "RUNNING"}
    shutil.rmtree(finished / "adnet_MINE_fold1/2")
    try:
        file.write_text(json.dumps({**entry, "heartbeat": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime())}))
        assert reproduce.main([*own[0], "--no-report"]) == 1
        failure = next(line for line in capsys.readouterr().err.splitlines() if " failed: " in line)
        assert failure.startswith(f"fold 0, seed 2021 failed: {file.parent}: is being trained at the moment")
        assert history(finished, 1) == [("training", "COMPLETED"), ("test", "COMPLETED")]
        file.write_text(json.dumps({**entry, "heartbeat": "2020-01-01T00:00:00"}))  # killed, but all steps were done
        assert reproduce.main([*own[0], "--no-report"]) == 0
        assert "everything is there already" in capsys.readouterr().out
    finally:
        file.write_text(content)


def test_slurm_jobs_run_the_same_command(own, finished, capsys, monkeypatch):
    monkeypatch.setenv("SBATCH", "--partition=long --mem=8G")
    monkeypatch.setenv("SEEDS", "2021 2022")
    assert reproduce.main([*own[0], "--slurm"]) == 0
    submit = capsys.readouterr().out
    train, report = (finished / "adnet_MINE_report" / name for name in ("train.sbatch", "report.sbatch"))
    assert f"sbatch --parsable '{train}'" in submit and f"--dependency=afterok:$job '{report}'" in submit
    text = train.read_text("utf-8")
    assert (
        "#SBATCH --array=0-3\n" in text and "#SBATCH --partition=long\n" in text and "#SBATCH --signal=B:TERM" in text
    )
    for file in (train, report):
        subprocess.run(["bash", "-n", str(file)], check=True)
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2"}  # fold 1, seed 2021
    done = subprocess.run(["bash", str(train)], env=environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and "everything is there already" in done.stdout, done.stderr
    done = subprocess.run(["bash", str(report)], capture_output=True, encoding="utf-8")
    assert done.returncode == 1 and "fold 0, seed 2022 is not trained and tested yet" in done.stderr


def test_what_a_training_builds_on_comes_first(tmp_path, capsys, monkeypatch):
    """VISA-FSS ends with its second stage, which starts from the first one and needs a registration network."""
    monkeypatch.setenv("FOLDS", "1")
    words = ["visa", "PHANTOM", f"runs={tmp_path}", "train.steps=9", "registration:train.steps=5", "encoder=resnet18"]
    assert reproduce.main([*words, "--dry-run"]) == 0
    *programs, _ = (line.split() for line in capsys.readouterr().out.splitlines())
    assert [words[1] for words in programs] == ["training.py"] * 3 + ["test.py"]
    above = "CHECKPOINT_OF_THE_RUN_ABOVE"
    for words, expected, absent in (
        (programs[0], {"method=registration", "train.steps=5"}, {"encoder=resnet18", "stage=2"}),
        (programs[1], {"method=visa", "stage=1", "train.steps=9", f"episode.registration={above}"}, {"stage=2"}),
        (programs[2], {"method=visa", "stage=2", f"train.start={above}", f"episode.registration={above}"}, {"stage=1"}),
        (programs[3], {"method=visa", "stage=2", f"test.checkpoint={above}", "protocol=strict"}, set()),
    ):
        assert expected | {"fold=1"} <= set(words) and not absent & set(words), words


@pytest.mark.parametrize(
    ("words", "environment", "expected"),
    [
        (["train.stepz=3"], {}, "train.stepz: no such key; did you mean train.steps"),
        (["fold=1"], {}, "fold=: is what this command chooses itself"),
        (["fast"], {}, "fast: write key=value"),
        ([], {"FOLDS": "7"}, "fold=7: FOLDS['PHANTOM'] in config.py has folds 0 to 3"),
        ([], {"SEEDS": "one"}, "SEEDS=one: whole numbers"),
        ([], {"PROTOCOLS": "honest"}, "protocol=honest: choose one of strict, published"),
    ],
)
def test_wrong_calls_are_one_sentence(words, environment, expected, capsys, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert reproduce.main(["adnet", "PHANTOM", *words, "--dry-run"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {expected}")


def test_the_script_shows_its_help():
    done = subprocess.run(["bash", str(ROOT / "script/reproduce.sh"), "--help"], capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and "SEEDS" in done.stdout and "--slurm" in done.stdout
