"""From raw downloads to prepared scans: nothing moves, nothing is swapped, bad files are told, a kill costs nothing."""

import csv
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import config
from data import chaost2, cmr, phantom_raw, sabs
from data.phantom_raw import truth
from supervoxels.generate import main as generate
from tests.commands import kill_when, score, train
from tests.conftest import ROOT
from tests.data import damage
from util.volume import read_volume

COMMANDS = {"chaost2": chaost2, "sabs": sabs, "cmr": cmr}
NUMBERS = {"chaost2": chaost2.NUMBERS, "sabs": range(30), "cmr": range(1, 36)}
# raw voxels, and the options that keep the prepared ones about as many
RAW_SHAPE = {"chaost2": (40, 144, 144), "sabs": (30, 144, 144), "cmr": (16, 110, 110)}
OPTIONS = {
    "chaost2": ("--spacing", 2.2, 2.2, 7.7, "--size", 144),
    "sabs": ("--size", 72),
    "cmr": ("--spacing", 2, 2, 8, "--size", 110),
}
SCANS = {"chaost2": 1, "sabs": 3, "cmr": 3}  # each set's orientations
SEED = 2


def run(kind: str, raw: Path, out: Path, *options) -> int:
    return COMMANDS[kind].main([*map(str, (raw, out, "--jobs", 1, *options))])


def prepared(kind: str, out: Path, index: int, part: str):
    folder = out / COMMANDS[kind].CONVERTER.folder
    return read_volume(folder / f"{part}_{NUMBERS[kind][index]}.nii.gz")


def files(folder: Path) -> dict[str, bytes]:
    """Content of everything but what a killed process left under a temporary name."""
    found = (path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def make_raw(kind: str, folder: Path, scans: int, shape: tuple[int, int, int], seed: int = SEED) -> Path:
    for index in range(scans):
        phantom_raw.WRITERS[kind](folder, seed, index, shape)
    return folder


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> dict[str, Path]:
    """Every set from raw files to prepared ones."""
    root = tmp_path_factory.mktemp("ready")
    for kind in COMMANDS:
        make_raw(kind, root / "raw" / kind, SCANS[kind], RAW_SHAPE[kind])
        assert run(kind, root / "raw" / kind, root / kind, *OPTIONS[kind]) == 0
    return {kind: root / kind for kind in COMMANDS}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> dict[str, Path]:
    """Two tiny raw scans of every set."""
    root = tmp_path_factory.mktemp("small")
    return {kind: make_raw(kind, root / kind, 2, (8, 32, 32)) for kind in COMMANDS}


TINY = {
    "chaost2": ("--spacing", 10, 10, 30, "--size", 32),
    "sabs": ("--size", 16),
    "cmr": ("--spacing", 7, 7, 16, "--size", 32),
}


@pytest.mark.parametrize(("kind", "index"), [(kind, index) for kind, count in SCANS.items() for index in range(count)])
def test_labels_lie_on_the_organs_they_came_from(ready, kind, index):
    label = prepared(kind, ready[kind], index, "label")
    expected = truth(kind, SEED, index, label.geometry, label.array.shape)
    for identifier in np.unique(expected[expected > 0]):
        found, organ = label.array == identifier, expected == identifier
        assert 2 * (found & organ).sum() / (found.sum() + organ.sum()) >= 0.95, identifier


@pytest.mark.parametrize(
    ("kind", "index"), [(kind, index) for kind in ("chaost2", "sabs") for index in range(SCANS[kind])]
)
def test_the_right_kidney_is_on_the_right(ready, kind, index):
    """x of the patient grows to the left; columns are stored to the left too."""
    label = prepared(kind, ready[kind], index, "label")
    columns = [np.nonzero(label.array == identifier)[2].mean() for identifier in (2, 3)]
    assert columns[0] < columns[1] and label.geometry.direction[0] > 0.9


@pytest.mark.parametrize("kind", ["sabs", "cmr"])
def test_scans_stored_in_three_ways_are_prepared_in_one(ready, kind):
    directions = [prepared(kind, ready[kind], index, "image").geometry.direction for index in range(3)]
    assert np.allclose(directions, directions[0], atol=1e-5)


def test_kept_orientations_differ_as_the_raw_files_do(small, tmp_path):
    for option in ("--keep-orientation", "--published"):
        assert run("cmr", small["cmr"], tmp_path / option, *TINY["cmr"], option) == 0
        first, second = (prepared("cmr", tmp_path / option, index, "image").geometry.direction for index in (0, 1))
        assert np.allclose(first[:2], np.negative(second[:2]), atol=1e-5)


def test_dicom_values_are_rescaled(ready):
    """Stored whole numbers mean SLOPE times as much."""
    image = prepared("chaost2", ready["chaost2"], 0, "image").array
    assert 500 < image.max() < 1500


def test_published_keeps_the_blank_samples_that_are_gone_by_default(small, tmp_path):
    assert run("sabs", small["sabs"], tmp_path / "published", "--published") == 0
    assert run("sabs", small["sabs"], tmp_path / "ours", *TINY["sabs"]) == 0
    published, ours = (prepared("sabs", tmp_path / name, 0, "image").array for name in ("published", "ours"))
    assert published.shape == (9, 17, 17) and ours.shape == (8, 16, 16)
    assert published.dtype == np.float64
    assert published[-1].max() == published[:, -1].max() == published[:, :, -1].max() == 0
    assert ours[-1].max() > 0


def test_the_manifest_tells_sources_parameters_and_versions(ready):
    manifest = json.loads((ready["chaost2"] / "preparation.json").read_text("utf-8"))
    scan = manifest["scans"]["1"]
    assert manifest["parameters"]["percentile"] == 99.5 and len(scan["sources"]) == 80
    assert all(len(digest) == 64 for digest in scan["sources"].values())
    assert set(scan["outputs"]) == {"image_1.nii.gz", "label_1.nii.gz"} and "SimpleITK" in scan["versions"]
    assert (ready["chaost2"] / "montage.png").stat().st_size > 1000


def test_found_and_expected_scans_are_counted(small, tmp_path, capsys):
    for kind, expected in (("chaost2", 20), ("sabs", 30), ("cmr", 35)):
        assert run(kind, small[kind], tmp_path / kind, *TINY[kind]) == 0
        assert f"2 scans found, {expected} expected; not there: " in capsys.readouterr().out


def test_the_averaged_layout_of_synapse_is_numbered_in_the_order_of_names(small, tmp_path):
    raw = tmp_path / "raw"
    for kind, ending in (("img", "avg"), ("label", "avg_seg")):
        folder = raw / f"averaged-training-{'images' if kind == 'img' else 'labels'}"
        folder.mkdir(parents=True)
        for place, name in ((1, "DET0004201"), (2, "DET0000101")):
            shutil.copy(
                small["sabs"] / f"RawData/Training/{kind}/{kind}{place:04d}.nii.gz", folder / f"{name}_{ending}.nii.gz"
            )
    assert run("sabs", raw, tmp_path / "averaged", *TINY["sabs"]) == 0
    assert run("sabs", small["sabs"], tmp_path / "plain", *TINY["sabs"]) == 0
    averaged, plain = (
        prepared("sabs", tmp_path / name, at, "label").array for name, at in (("averaged", 0), ("plain", 1))
    )
    np.testing.assert_array_equal(averaged, plain)


def test_scans_without_label_are_left_out_and_counted(small, tmp_path, capsys):
    raw = {kind: Path(shutil.copytree(small[kind], tmp_path / kind)) for kind in COMMANDS}
    shutil.rmtree(damage.first_patient(raw["chaost2"]) / "Ground")
    damage.nifti(raw["sabs"], "label").unlink()
    (raw["cmr"] / "patient1_C0_manual.nii.gz").unlink()
    for kind, remark in (
        ("chaost2", "1 patients without labels left out"),
        ("sabs", "1 scans without label left out: 0001"),
        ("cmr", "1 scans without label left out: 1"),
    ):
        assert run(kind, raw[kind], tmp_path / "out" / kind, *TINY[kind]) == 0
        printed = capsys.readouterr().out
        assert remark in printed and "1 prepared" in printed


def test_a_second_run_makes_only_what_is_missing_or_changed(small, tmp_path, capsys):
    raw = Path(shutil.copytree(small["sabs"], tmp_path / "raw"))
    out = tmp_path / "out"
    assert run("sabs", raw, out, *TINY["sabs"]) == 0
    before = files(out)
    capsys.readouterr()
    assert run("sabs", raw, out, *TINY["sabs"]) == 0
    assert "0 prepared, 2 were ready" in capsys.readouterr().out and files(out) == before
    (out / "sabs_CT_normalized/label_1.nii.gz").write_bytes(b"edited by hand")
    assert run("sabs", raw, out, *TINY["sabs"]) == 0
    assert "1 prepared, 1 were ready" in capsys.readouterr().out and files(out) == before
    shutil.copy(raw / "RawData/Training/img/img0001.nii.gz", raw / "RawData/Training/img/img0002.nii.gz")
    shutil.copy(raw / "RawData/Training/label/label0001.nii.gz", raw / "RawData/Training/label/label0002.nii.gz")
    assert run("sabs", raw, out, *TINY["sabs"]) == 0
    after = files(out)
    assert after["sabs_CT_normalized/image_1.nii.gz"] == before["sabs_CT_normalized/image_0.nii.gz"]


def test_other_parameters_are_refused_until_overwritten(small, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("cmr", small["cmr"], out, *TINY["cmr"]) == 0
    assert run("cmr", small["cmr"], out, *TINY["cmr"], "--published") == 1
    assert "published False and not True" in capsys.readouterr().err
    assert run("cmr", small["cmr"], out, *TINY["cmr"], "--published", "--overwrite") == 0
    assert prepared("cmr", out, 0, "image").array.dtype == np.float64


def test_two_processes_write_the_same_bytes(small, tmp_path):
    for jobs in (1, 2):
        assert run("chaost2", small["chaost2"], tmp_path / str(jobs), *TINY["chaost2"], "--jobs", jobs) == 0
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_a_killed_command_started_again_gives_the_same_bytes(tmp_path):
    raw = make_raw("cmr", tmp_path / "raw", 8, (8, 32, 32))
    options = [str(value) for value in ("--spacing", 1.2, 1.2, 2, "--size", 192, "--jobs", 1)]
    images = tmp_path / "killed/cmr_MR_normalized"
    call = ("data.cmr", str(raw), str(tmp_path / "killed"), *options)
    kill_when(lambda: len(list(images.glob("label_*"))) >= 2, *call)
    assert 2 <= len(list(images.glob("label_*"))) < 8
    for folder in ("killed", "whole"):
        assert cmr.main([str(raw), str(tmp_path / folder), *options]) == 0
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_from_raw_files_to_dice(tmp_path):
    """Six patients are what fold 0 of CHAOST2 tests and one to train on."""
    root = tmp_path / "CHAOST2"
    raw = make_raw("chaost2", tmp_path / "raw", 6, (16, 48, 48))
    assert run("chaost2", raw, root, "--spacing", 6.7, 6.7, 15, "--size", 48) == 0
    images, supervoxels = root / "chaos_MR_T2_normalized", root / "supervoxels_5000"
    assert generate([str(images), str(supervoxels), "--min-size", "150", "--jobs", "1"]) == 0
    updates = ("dataset=CHAOST2", f"data_root={tmp_path}", f"runs={tmp_path / 'runs'}", "train.steps=1")
    train(*updates)
    score(*updates)
    with open(tmp_path / "runs/adnet_CHAOST2_fold0/2/scores.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert {row["organ"] for row in rows} == set(config.DATASETS["CHAOST2"].organs)
    assert {row["scan"] for row in rows} == {"1", "2", "3", "5"} and all(row["dice"] for row in rows)


# ------------------------------------------------------------------------------------------------------- bad input


BAD = [
    ("chaost2", damage.lose_a_slice, "a slice is missing between"),
    ("chaost2", damage.lose_a_picture, "7 label pictures for 8 DICOM slices; no picture for IMG-"),
    ("chaost2", damage.mix_series, "holds 2 DICOM series (7 and 1 slices)"),
    ("chaost2", damage.mix_spacings, "the spacing differs within the series ([1.5, 1.5] against [10.0, 10.0]"),
    ("chaost2", damage.double_a_slice, "lie at the same place"),
    ("chaost2", damage.cut_a_slice, "its pixels cannot be read"),
    ("chaost2", damage.no_dicom, "is not a readable DICOM slice"),
    ("chaost2", damage.strange_grey, "holds the label value(s) 77; known are 0, 63, 126, 189, 252"),
    ("chaost2", damage.broken_picture, "the picture is damaged"),
    ("sabs", damage.other_shape, "label0001.nii.gz: has shape (7, 32, 32)"),
    ("sabs", damage.other_spacing, "its header places it elsewhere than the image"),
    ("sabs", damage.four_dimensions, "a 3D volume with one value per voxel is expected"),
    ("sabs", damage.truncated, "img0001.nii.gz: cannot be read, the file is damaged"),
    ("sabs", damage.no_image, "img0001.nii.gz: cannot be read"),
    ("sabs", damage.nothing_labelled, "shows no organ at all"),
    ("sabs", damage.twice, "there is also"),
]


@pytest.mark.parametrize(("kind", "harm", "sentence"), BAD, ids=[harm.__name__ for _, harm, _ in BAD])
def test_a_bad_scan_is_told_and_the_others_are_prepared(small, tmp_path, capsys, kind, harm, sentence):
    raw = Path(shutil.copytree(small[kind], tmp_path / "raw"))
    harm(raw)
    assert run(kind, raw, tmp_path / "out", *TINY[kind]) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "failed" in line]
    bad = [line for line in lines if line.startswith(f"scan {NUMBERS[kind][0]} failed: ")]
    assert sentence in bad[0] and len(bad) == 1
    names = {path.name for path in (tmp_path / "out").rglob("*.nii.gz")}
    good = NUMBERS[kind][1]
    if harm is not damage.twice:  # which doubles every scan
        assert names == {f"image_{good}.nii.gz", f"label_{good}.nii.gz"} and len(lines) == 1


def test_labels_with_another_header_are_accepted_on_request(small, tmp_path):
    raw = Path(shutil.copytree(small["sabs"], tmp_path / "raw"))
    damage.other_spacing(raw)
    assert run("sabs", raw, tmp_path / "out", *TINY["sabs"], "--trust-label-voxels") == 0


def test_names_of_another_set_are_named_with_those_expected(small, tmp_path, capsys):
    for path in small["cmr"].glob("patient1_*"):
        name = path.name.replace("patient1_C0_manual", "myops_training_101_gd").replace(
            "patient1", "myops_training_101"
        )
        (tmp_path / "raw").mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / "raw" / name)
    assert run("cmr", tmp_path / "raw", tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert "expected patientN_C0.nii.gz with patientN_C0_manual.nii.gz" in told and "1220" in told and "2221" in told
    assert "found 2 other files: myops_training_101_C0.nii.gz, myops_training_101_gd.nii.gz" in told


def test_linked_patients_are_found_and_gone_ones_said(small, tmp_path, capsys):
    raw = Path(shutil.copytree(small["chaost2"], tmp_path / "raw"))
    patients = damage.first_patient(raw).parent.parent
    (patients / "1").rename(tmp_path / "elsewhere")
    (patients / "1").symlink_to(tmp_path / "elsewhere")
    (patients / "77").symlink_to("nowhere")
    assert run("chaost2", raw, tmp_path / "out", *TINY["chaost2"]) == 0
    told = capsys.readouterr().out
    assert "CHAOST2: 2 prepared" in told and f"{patients}/77: is a link to nowhere, which is not there" in told


def test_two_commands_in_one_folder_lose_nothing(small, tmp_path):
    """The second is refused in one sentence while the first works, and goes on when that was killed."""
    options = [str(small["cmr"]), str(tmp_path / "out"), *map(str, TINY["cmr"]), "--jobs", "1"]
    raw = make_raw("cmr", tmp_path / "raw", 8, (8, 32, 32))
    slow = ["--spacing", "1.2", "1.2", "2", "--size", "192", "--jobs", "1"]
    command = [sys.executable, "-m", "data.cmr", str(raw), str(tmp_path / "out"), *slow]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        deadline = time.monotonic() + 60
        while not list((tmp_path / "out").glob("preparation.json")) and time.monotonic() < deadline:
            time.sleep(0.005)
        second = subprocess.run(
            [sys.executable, "-m", "data.cmr", *options], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
        )
        if first.poll() is None:
            first.kill()
    assert second.returncode == 1 and second.stderr.count("\n") == 1
    assert "works there; wait for its end" in second.stderr or "other parameters" in second.stderr
    assert cmr.main([str(raw), str(tmp_path / "out"), *slow]) == 0
    assert len(json.loads((tmp_path / "out/preparation.json").read_text("utf-8"))["scans"]) == 8


@pytest.mark.parametrize("kind", list(COMMANDS))
def test_a_folder_without_scans_is_an_error(kind, tmp_path, capsys):
    assert run(kind, tmp_path, tmp_path / "out") == 1 and "holds no scan of" in capsys.readouterr().err
    assert run(kind, tmp_path / "nowhere", tmp_path / "out") == 1 and "no such folder" in capsys.readouterr().err


def test_folders_and_organs_are_those_of_the_configuration():
    for module in COMMANDS.values():
        converter = module.CONVERTER
        row = config.DATASETS[converter.name]
        assert Path(row.images).name == converter.folder
        assert dict(row.organs) == {name: identifier for identifier, name in converter.organs.items()}
        folds = config.FOLDS[converter.name]
        assert set(converter.expected) == {number for fold in folds for number in (fold["support"], *fold["query"])}
