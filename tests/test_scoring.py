"""test.py as a user runs it: scores, predictions on the scan's grid, pictures, refusals."""

import csv
import gc
import hashlib
import itertools
import json
import os
import signal
import weakref

import numpy as np
import pytest
import torch
from sacred.observers import FileStorageObserver
from sacred.utils import IntervalTimer

import test as testing
from dataloaders import scans
from tests.commands import only_run, refused, score, train
from util import checkpoints
from util.errors import UserError
from util.evaluation.metrics import METRICS, overlap, volume_scores
from util.evaluation.tasks import Result
from util.runs import folders
from util.volume import read_volume

ORGANS = {"liver": 1, "right kidney": 2, "left kidney": 3, "spleen": 4}


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """Folder `runs` with one finished training of 3 steps."""
    folder = tmp_path_factory.mktemp("runs")
    train(f"data_root={tiny}", f"runs={folder}")
    return folder


def rows_of(run) -> list[dict[str, str]]:
    with (run / "scores.csv").open() as handle:
        return list(csv.DictReader(handle))


@pytest.mark.parametrize("protocol", ["strict", "published"])
@pytest.mark.parametrize("pairing", ["parts", "whole"])
def test_scores_are_those_of_the_saved_predictions(tiny, trained, capsys, protocol, pairing):
    score(f"data_root={tiny}", f"runs={trained}", f"protocol={protocol}", f"test.pairing={pairing}")
    printed = capsys.readouterr().out
    run = max((trained / "adnet_PHANTOM_fold0").iterdir(), key=lambda p: int(p.name))
    rows = rows_of(run)
    assert {(row["organ"], row["scan"]) for row in rows} == {(o, str(s)) for o in ORGANS for s in (1, 2, 3)}
    assert all(organ in printed for organ in ORGANS) and "mean" in printed
    whole = [name for name, metric in METRICS.items() if metric.whole]
    for row in rows:
        assert (row["protocol"], row["pairing"], row["support"]) == (protocol, pairing, "4")
        truth = read_volume(tiny / f"PHANTOM/phantom_MR_normalized/label_{row['scan']}.nii.gz")
        prediction = read_volume(run / f"predictions/{row['organ'].replace(' ', '_')}_{row['scan']}.nii.gz")
        assert prediction.geometry.matches(truth.geometry)
        organ, mask = truth.array == ORGANS[row["organ"]], prediction.array == 1
        shown = organ.any((1, 2))
        counted = shown if pairing == "parts" else np.ones_like(shown)
        dice, iou = overlap(mask[counted], organ[counted])
        assert float(row["dice"]) == pytest.approx(dice, abs=1e-6)
        assert float(row["iou"]) == pytest.approx(iou, abs=1e-6)
        if (protocol, pairing) == ("published", "parts"):
            assert {row[name] for name in whole} == {""} and not mask[~shown].any()
        else:
            expected = volume_scores(mask, organ, truth.geometry.spacing[::-1])
            assert {name: float(row[name]) for name in whole} == pytest.approx(expected, abs=1e-5)


def test_scores_name_what_they_were_made_from(tiny, trained):
    score(f"data_root={tiny}", f"runs={trained}", "test.supports=all")
    checkpoint = folders.newest_finished(trained / "adnet_PHANTOM_fold0")
    run = max((trained / "adnet_PHANTOM_fold0").iterdir(), key=lambda p: int(p.name))
    digits = hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    sources = json.loads((run / "scans.json").read_text("utf-8"))
    assert sources["organs"] == ORGANS
    for row in rows_of(run):
        assert (row["checkpoint"], row["checkpoint_sha256"]) == (str(checkpoint), digits[:12])
        assert (row["encoder"], row["setting"], row["supports"]) == ("efficientnet_lite0", "1", "all")
        files = sources["scans"][row["scan"]]
        assert all(name.startswith("/") for name in files.values())
        prediction = read_volume(run / row["prediction"])
        assert prediction.geometry.matches(read_volume(files["image"]).geometry)
        organ = read_volume(files["label"]).array == ORGANS[row["organ"]]
        assert float(row["dice_volume"]) == pytest.approx(overlap(prediction.array == 1, organ)[0], abs=1e-6)


def test_scores_do_not_depend_on_the_batch(tiny, trained):
    score(f"data_root={tiny}", f"runs={trained}", "test.batch_size=1")
    score(f"data_root={tiny}", f"runs={trained}", "test.batch_size=16")
    last = sorted((trained / "adnet_PHANTOM_fold0").iterdir(), key=lambda p: int(p.name))[-2:]
    one, other = (np.array([float(row["dice"]) for row in rows_of(run)]) for run in last)
    np.testing.assert_allclose(one, other, atol=2e-3)  # a voxel on the threshold may flip


def test_half_precision_scores_alike(tiny, trained):
    for precision in ("float32", "bfloat16"):
        score(f"data_root={tiny}", f"runs={trained}", f"test.precision={precision}")
    last = sorted((trained / "adnet_PHANTOM_fold0").iterdir(), key=lambda p: int(p.name))[-2:]
    one, other = (np.array([float(row["dice"]) for row in rows_of(run)]) for run in last)
    np.testing.assert_allclose(one, other, atol=0.05)
    assert (one != other).any()  # it was another precision


def test_alpnets_published_tables_show_precision_and_recall(tiny, tmp_path, capsys):
    score("method=alpnet", f"data_root={tiny}", f"runs={tmp_path}", "test.checkpoint=untrained", "protocol=published")
    headings = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "published, parts" in line]
    assert headings == ["dice", "precision_slices", "recall_slices"]
    for row in rows_of(tmp_path / "alpnet_PHANTOM_fold0/1"):
        dice, precision, recall = (float(row[name]) for name in ("dice", "precision_slices", "recall_slices"))
        assert dice == pytest.approx(2 * precision * recall / (precision + recall), abs=1e-5)


def test_untrained_network_and_pictures(tiny, tmp_path):
    score(f"data_root={tiny}", f"runs={tmp_path}", "test.checkpoint=untrained", "test.save=True")
    pictures = sorted(p.name for p in only_run(tmp_path).glob("*.png"))
    assert pictures == ["left_kidney.png", "liver.png", "right_kidney.png", "spleen.png"]
    assert {row["checkpoint"] for row in rows_of(only_run(tmp_path))} == {"untrained"}


def test_scores_outlive_a_picture_that_cannot_be_written(tiny, tmp_path, monkeypatch, capsys):
    def full_disk(*_):
        raise UserError("liver.png: no room")

    monkeypatch.setattr(testing, "draw_contours", full_disk)
    options = (f"data_root={tiny}", f"runs={tmp_path}", "test.checkpoint=untrained", "organs=liver", "test.save=True")
    assert refused(capsys, score, *options) == "error: liver.png: no room"
    assert len(rows_of(only_run(tmp_path))) == 3


def last_rows(runs_folder) -> list[dict[str, str]]:
    return rows_of(max((runs_folder / "adnet_PHANTOM_fold0").iterdir(), key=lambda p: int(p.name)))


@pytest.mark.parametrize("pairing", ["volume", "position", "similar", "propagate"])
def test_other_ways_to_meet_the_support(tiny, trained, pairing):
    score(f"data_root={tiny}", f"runs={trained}", f"test.pairing={pairing}")
    rows = last_rows(trained)
    assert len(rows) == 12 and all(row["dice_volume"] for row in rows)


def test_supports_rotate_and_their_spread_is_shown(tiny, trained, capsys):
    score(f"data_root={tiny}", f"runs={trained}", "test.supports=all", "test.save=True")
    assert "the choice of the support scan" in capsys.readouterr().out
    pairs = {(row["scan"], row["support"]) for row in last_rows(trained) if row["organ"] == "liver"}
    assert pairs == {(str(q), str(s)) for q in (1, 2, 3) for s in (1, 2, 3, 4) if q != s}
    run = max((trained / "adnet_PHANTOM_fold0").iterdir(), key=lambda p: int(p.name))
    assert (run / "predictions/liver_1_support4.nii.gz").exists()


def test_supports_are_pooled(tiny, trained):
    score(f"data_root={tiny}", f"runs={trained}", "test.supports=all", "test.pool=True")
    assert {row["support"] for row in last_rows(trained) if row["scan"] == "1"} == {"4+2+3"}


def test_an_ensemble_of_checkpoints(tiny, trained):
    own = folders.newest_finished(trained / "adnet_PHANTOM_fold0")
    score(f"data_root={tiny}", f"runs={trained}")
    alone = last_rows(trained)
    score(f"data_root={tiny}", f"runs={trained}", f"test.ensemble=['{own}']")
    both = last_rows(trained)
    assert [row["dice"] for row in both] == [row["dice"] for row in alone]  # the same twice
    assert both[0]["checkpoint"].count("+") == 1


def test_five_annotated_scans_where_there_are_not_as_many(tiny, trained, capsys):
    line = refused(capsys, score, f"data_root={tiny}", f"runs={trained}", "test.shots=9", "test.shots_of=scans")
    assert "test.shots=9" in line


@pytest.mark.parametrize("pairing", ["parts", "similar"])
def test_memory_does_not_grow_with_the_queries(tiny, trained, monkeypatch, pairing):
    """Whenever a scan is read, there are that one, the support, and the last result."""
    images, there = [], []

    def read(*arguments, **options) -> scans.Scan:
        scan = read_scan(*arguments, **options)
        gc.collect()
        images.append(weakref.ref(scan.image))
        results = sum(type(found) is Result for found in gc.get_objects())
        there.append((sum(image() is not None for image in images), results))
        return scan

    read_scan = scans.read_scan
    monkeypatch.setattr(scans, "read_scan", read)
    score(f"data_root={tiny}", f"runs={trained}", f"test.pairing={pairing}", "test.save=True")
    assert there == [(1, 0), (2, 0), (2, 1), (2, 1)]  # a query, its support, two more queries


# ------------------------------------------------------------------------------------------------------- refusals


def test_nothing_trained_yet(tiny, tmp_path, capsys):
    assert "train first" in refused(capsys, score, f"data_root={tiny}", f"runs={tmp_path}")


def test_unfinished_training_is_not_taken_silently(tiny, tmp_path, capsys):
    train(f"data_root={tiny}", f"runs={tmp_path}")
    record = only_run(tmp_path) / "run.json"
    record.write_text(record.read_text("utf-8").replace("COMPLETED", "INTERRUPTED"))
    line = refused(capsys, score, f"data_root={tiny}", f"runs={tmp_path}")
    assert "no training run has finished" in line and "resume=" in line


def test_checkpoint_of_another_method(tiny, tmp_path, capsys, trained):
    content = checkpoints.load_checkpoint(folders.latest_checkpoint(only_run(trained)))
    del content["format"]
    checkpoints.save_checkpoint(tmp_path / "other.pt", {**content, "method": "gmrd"})
    line = refused(capsys, score, f"data_root={tiny}", f"runs={tmp_path}", f"test.checkpoint={tmp_path / 'other.pt'}")
    assert "method=gmrd" in line and "method=adnet" in line


def test_foreign_checkpoint(tiny, tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "foreign.pt")
    line = refused(capsys, score, f"data_root={tiny}", f"runs={tmp_path}", f"test.checkpoint={tmp_path / 'foreign.pt'}")
    assert "not a checkpoint of this program" in line


def test_checkpoint_that_was_trained_on_the_test_scans(tiny, tmp_path, capsys, trained):
    content = checkpoints.load_checkpoint(folders.latest_checkpoint(only_run(trained)))
    del content["format"]
    checkpoints.save_checkpoint(tmp_path / "leak.pt", {**content, "training_scans": [2, 5, 6]})
    line = refused(capsys, score, f"data_root={tiny}", f"runs={tmp_path}", f"test.checkpoint={tmp_path / 'leak.pt'}")
    assert "trained on scans 2 of this fold" in line


def test_label_on_another_grid(broken, tmp_path, capsys):
    import dataclasses

    from util.volume import write_volume

    file = broken / "PHANTOM/phantom_MR_normalized/label_2.nii.gz"
    label = read_volume(file)
    write_volume(file, label.array, dataclasses.replace(label.geometry, spacing=(5.0, 5.0, 9.0)))
    line = refused(capsys, score, f"data_root={broken}", f"runs={tmp_path}", "test.checkpoint=untrained")
    assert "another grid" in line and str(file) in line


def test_support_without_the_organ(broken, tmp_path, capsys):
    from util.volume import write_volume

    file = broken / "PHANTOM/phantom_MR_normalized/label_4.nii.gz"
    label = read_volume(file)
    write_volume(file, np.where(label.array == 4, 0, label.array), label.geometry)
    line = refused(capsys, score, f"data_root={broken}", f"runs={tmp_path}", "test.checkpoint=untrained")
    assert "scan 4" in line and "spleen" in line


def test_a_test_that_is_killed_says_so(tiny, trained):
    """SIGTERM while scoring: the run's status is INTERRUPTED, not RUNNING for ever."""
    from tests.commands import start
    from tests.test_training import wait_for

    before = set((trained / "adnet_PHANTOM_fold0").iterdir())
    process = start("test.py", f"data_root={tiny}", f"runs={trained}", "test.batch_size=1")

    def begun() -> bool:
        return any((run / "run.json").exists() for run in set((trained / "adnet_PHANTOM_fold0").iterdir()) - before)

    wait_for(begun, process)
    process.send_signal(signal.SIGTERM)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in printed
    (new,) = set((trained / "adnet_PHANTOM_fold0").iterdir()) - before
    assert folders.status(new) == "INTERRUPTED"


@pytest.mark.parametrize(
    "owner, step, times",
    [(FileStorageObserver, "save_json", 2), (IntervalTimer, "start", 1)],
    ids=["between run.json and config.json", "before the thread that Sacred joins at the end"],
)
def test_a_signal_while_a_run_begins_is_in_its_status(tiny, trained, monkeypatch, owner, step, times):
    """SIGTERM just before a step of the start is taken for the n-th time."""
    original, calls = getattr(owner, step), itertools.count(1)

    def killed(*args) -> None:
        if next(calls) == times:
            os.kill(os.getpid(), signal.SIGTERM)
        original(*args)

    monkeypatch.setattr(owner, step, killed)
    before = set((trained / "adnet_PHANTOM_fold0").iterdir())
    with pytest.raises(SystemExit) as left:
        score(f"data_root={tiny}", f"runs={trained}")
    (new,) = set((trained / "adnet_PHANTOM_fold0").iterdir()) - before
    assert left.value.code == 130 and folders.status(new) == "INTERRUPTED"
