"""The scripts a user calls, on a tiny phantom."""

import csv
import os
import subprocess

from tests.commands import SMALL, only_run
from tests.conftest import ROOT

TINY = tuple(update for update in SMALL if not update.startswith("dataset="))


def bash(script: str, *arguments: str, folder=ROOT, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "script" / script), *arguments]
    return subprocess.run(command, cwd=folder, env={**os.environ, **environment}, capture_output=True, encoding="utf-8")


def test_train_then_test(tiny, tmp_path):
    """From another folder, with a relative DATA, two folds' worth of environment, and the method left out."""
    data = os.path.relpath(tiny, tmp_path)
    for script in ("train_abd_2D.sh", "test_abd_2D.sh"):
        done = bash(script, f"runs={tmp_path}", *TINY, folder=tmp_path, DATASET="PHANTOM", DATA=data, FOLDS="0")
        assert done.returncode == 0, done.stderr
    with (only_run(tmp_path, 2) / "scores.csv").open() as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 4 * 3 and {row["method"] for row in rows} == {"adnet"}
    assert "liver" in done.stdout and "mean" in done.stdout


def test_method_and_wrong_key(tiny, tmp_path):
    done = bash("train_cmr_2D.sh", "adnet", "nonsense=1", f"runs={tmp_path}", DATASET="PHANTOM", DATA=str(tiny))
    assert done.returncode == 1 and "nonsense: no such key" in done.stderr


def test_help():
    scripts = ("train_abd_2D.sh", "test_abd_2D.sh", "train_cmr_2D.sh", "test_cmr_2D.sh")
    for script in (*scripts, "train_visa_stage1.sh", "train_visa_stage2.sh"):
        done = bash(script, "--help")
        assert done.returncode == 0 and "FOLDS" in done.stdout and "key=value" in done.stdout
    for script in ("check.sh", "demo.sh", "setup.sh"):  # and nothing is done
        done = bash(script, "--help")
        assert done.returncode == 0 and f"bash script/{script}" in done.stdout and "default: " in done.stdout
        assert not done.stderr and len(done.stdout.splitlines()) < 5


def test_missing_data_set_says_what_to_do(tmp_path):
    done = bash("train_cmr_2D.sh", f"runs={tmp_path}", DATA=str(tmp_path))
    assert done.returncode == 1 and str(tmp_path / "CMR/cmr_MR_normalized") in done.stderr
