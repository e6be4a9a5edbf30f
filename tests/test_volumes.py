"""The 3D track as a user runs it: training, resume, test, scripts, on the tiny phantom."""

import csv
import subprocess

import numpy as np
import pytest

from tests.commands import refused, resume, score, train
from tests.conftest import ROOT
from tests.script.test_scripts import bash
from tests.test_training import assert_same, weights
from util.evaluation.metrics import overlap
from util.runs import folders
from util.volume import read_volume

SMALL_3D = ("method=adnet3d", "episode.crop=[4,48,48]", "stride=8")


def run_of(folder, number: int = 1):
    return folder / "adnet3d_PHANTOM_fold0" / str(number)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Folder `runs` with one run of 6 steps, checkpoints at 3 and 6."""
    folder = tmp_path_factory.mktemp("volumes")
    train(*SMALL_3D, f"data_root={tiny}", f"runs={folder}", "train.steps=6", "train.save_every=3")
    return folder


def test_resumed_equals_straight(tiny, tmp_path, trained):
    """Bit for bit, with a worker or without, from the checkpoint of step 3."""
    checkpoint = run_of(trained) / "checkpoints/step_000003.pt"
    for number, workers in enumerate((0, 1), start=1):
        resume(checkpoint, f"runs={tmp_path}", f"workers={workers}")
        assert_same(weights(run_of(tmp_path, number)), weights(run_of(trained)))


def test_recomputing_trains_the_same_network(tiny, tmp_path, trained):
    updates = (f"data_root={tiny}", f"runs={tmp_path}", "train.steps=6", "train.save_every=3")
    train(*SMALL_3D, *updates, "train.recompute=True")
    assert_same(weights(run_of(tmp_path)), weights(run_of(trained)))


@pytest.mark.parametrize(
    "updates", [("protocol=strict",), ("protocol=published", "test.patch=[6,0,0]"), ("test.pairing=parts",)]
)
def test_scores_join_those_of_slices(tiny, trained, capsys, updates):
    """The same scores.csv, pictures and NIfTI on the scan's grid; every slice that shows the organ is annotated."""
    score(*SMALL_3D, f"data_root={tiny}", f"runs={trained}", "test.save=True", *updates)
    printed = capsys.readouterr().out
    run = max((trained / "adnet3d_PHANTOM_fold0").iterdir(), key=lambda p: int(p.name))
    rows = list(csv.DictReader((run / "scores.csv").open()))
    assert len(rows) == 4 * 3 and {row["method"] for row in rows} == {"adnet3d"} and "liver" in printed
    assert len(list(run.glob("*.png"))) == 4
    for row in rows[:2]:
        truth = read_volume(tiny / f"PHANTOM/phantom_MR_normalized/label_{row['scan']}.nii.gz")
        prediction = read_volume(run / f"predictions/{row['organ'].replace(' ', '_')}_{row['scan']}.nii.gz")
        assert prediction.geometry.matches(truth.geometry)
        if row["pairing"] == "volume":
            assert float(row["slices"]) == 16
            organ = truth.array == {"liver": 1, "right kidney": 2}[row["organ"]]
            assert float(row["dice"]) == pytest.approx(overlap(prediction.array == 1, organ)[0], abs=1e-6)


def test_a_bound_on_memory_is_kept_and_the_peak_reported(tiny, trained, caplog):
    with caplog.at_level("INFO"):
        score(*SMALL_3D, f"data_root={tiny}", f"runs={trained}", "test.memory_gb=0.003")
    assert "volume (16, 64, 64) in patches of (" in caplog.text and "peak memory" in caplog.text


def test_scripts_default_to_the_3d_method(tiny, tmp_path):
    small = [
        "episode.crop=[4,48,48]",
        "stride=8",
        "encoder=efficientnet_lite0",
        "threads=1",
        "workers=0",
        "episode.min_size=20",
        "train.steps=2",
    ]
    for script in ("train_cmr_3D.sh", "test_cmr_3D.sh"):
        done = bash(script, f"runs={tmp_path}", *small, DATASET="PHANTOM", DATA=str(tiny))
        assert done.returncode == 0, done.stderr
    assert folders.status(run_of(tmp_path)) == folders.status(run_of(tmp_path, 2)) == "COMPLETED"
    assert "mean" in done.stdout


@pytest.mark.parametrize("script", ["train_abd_3D.sh", "test_abd_3D.sh"])
def test_help_names_the_method(script):
    done = subprocess.run(["bash", str(ROOT / "script" / script), "--help"], capture_output=True, encoding="utf-8")
    assert done.returncode == 0 and "default adnet3d" in done.stdout


@pytest.mark.parametrize(
    ("updates", "expected"),
    [
        (("method=adnet3d", "episode.sampler=neighbours"), "sees volumes; choose crops"),
        (("method=adnet", "episode.sampler=crops"), "crops are for volumes"),
        (("method=adnet3d", "episode.crop=[4,48]"), "episode.crop=[4, 48]"),
        (("method=adnet3d", "episode.elastic=10.0"), "set episode.elastic=0"),
        (("method=adnet", "encoder=resnext101_3d"), "sees volumes, this method sees slices"),
        (("method=adnet3d", "episode.min_size=999999"), "episode.min_size=999999"),
    ],
)
def test_mistakes(tiny, tmp_path, capsys, updates, expected):
    assert expected in refused(capsys, train, f"data_root={tiny}", f"runs={tmp_path}", "train.steps=1", *updates)


def test_walks_are_refused(tiny, trained, capsys):
    line = refused(capsys, score, *SMALL_3D, f"data_root={tiny}", f"runs={trained}", "test.pairing=propagate")
    assert "volume, whole, parts or position" in line


def test_batches_of_several_shapes_are_refused(broken, tmp_path, capsys):
    """Scan 6 with 3 slices: crops of 4 and of 3 slices cannot be one batch; one by one they train."""
    from util.volume import write_volume

    for name in (
        "phantom_MR_normalized/image_6",
        "phantom_MR_normalized/label_6",
        "supervoxels_5000/superpix-MIDDLE_6",
    ):
        file = broken / f"PHANTOM/{name}.nii.gz"
        scan = read_volume(file)
        write_volume(file, np.ascontiguousarray(scan.array[6:9]), scan.geometry)
    updates = (f"data_root={broken}", f"runs={tmp_path}", "train.steps=2")
    line = refused(capsys, train, *SMALL_3D, *updates, "train.batch_size=2")
    assert "crops of several shapes [(3, 48, 48), (4, 48, 48)]" in line
    train(*SMALL_3D, *updates)
    assert weights(run_of(tmp_path, 2))["step"] == 2
