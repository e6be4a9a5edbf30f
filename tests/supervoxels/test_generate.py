"""The command that makes a folder of supervoxels: complete, resumable, never half a file, never two kinds mixed."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from supervoxels import supervoxels
from supervoxels.generate import main
from supervoxels.superpixels import superpixels
from util.dataset import Dataset
from util.volume import Geometry, read_volume, write_volume

ROOT = Path(__file__).resolve().parents[2]
GEOMETRY = Geometry((1.25, 1.5, 7.7), (3.0, -4.0, 5.0))


@pytest.fixture
def images(tmp_path):
    """Three tiny scans whose numbers are not in the order of their names."""
    return _scans(tmp_path / "images", (2, 10, 1))


def _scans(folder, numbers, shape=(4, 20, 24)):
    for number in numbers:
        scan = np.random.default_rng(number).integers(0, 300, shape).astype(np.int16)
        scan[:, :2] = 0
        write_volume(folder / f"image_{number}.nii.gz", scan, GEOMETRY)
    return folder


def _generate(images, out, *options):
    return main([str(images), str(out), "--min-size", "50", "--backend", "threading", "--jobs", "2", *options])


def _files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_every_scan_gets_its_supervoxels_with_its_geometry(images, tmp_path):
    assert _generate(images, tmp_path / "out") == 0
    assert sorted(_files(tmp_path / "out")) == [
        "parameters.json",
        "superpix-MIDDLE_1.nii.gz",
        "superpix-MIDDLE_10.nii.gz",
        "superpix-MIDDLE_2.nii.gz",
    ]
    for number in (1, 2, 10):
        made = read_volume(tmp_path / f"out/superpix-MIDDLE_{number}.nii.gz")
        scan = read_volume(images / f"image_{number}.nii.gz")
        assert made.array.dtype == np.int32
        assert made.geometry.matches(scan.geometry)
        expected = supervoxels(scan.array, min_size=50, spacing=(7.7, 1.25, 1.5))
        np.testing.assert_array_equal(made.array, expected)


@pytest.mark.parametrize(
    "options", [["--backend", "loky"], ["--threads", "2"], ["--jobs", "1"], ["--max-memory", "1G"]]
)
def test_how_the_work_is_done_does_not_change_a_byte(images, tmp_path, options):
    assert _generate(images, tmp_path / "plain") == 0
    assert _generate(images, tmp_path / "other", *options) == 0
    assert _files(tmp_path / "plain") == _files(tmp_path / "other")


def test_a_dask_cluster_makes_the_same_files(images, tmp_path):
    pytest.importorskip("distributed", reason="the optional package distributed is not installed")
    assert _generate(images, tmp_path / "plain") == 0
    assert _generate(images, tmp_path / "dask", "--backend", "dask") == 0
    assert _files(tmp_path / "plain") == _files(tmp_path / "dask")


def test_a_second_run_makes_only_what_is_missing(images, tmp_path):
    out = tmp_path / "out"
    assert _generate(images, out) == 0
    before = _files(out)
    missing, kept = out / "superpix-MIDDLE_10.nii.gz", out / "superpix-MIDDLE_1.nii.gz"
    missing.unlink()
    written = kept.stat().st_mtime_ns
    assert _generate(images, out) == 0
    assert _files(out) == before
    assert kept.stat().st_mtime_ns == written


def test_a_scan_that_changed_is_done_again(images, tmp_path):
    out = tmp_path / "out"
    assert _generate(images, out) == 0
    _scans(images, (2,), shape=(5, 20, 24))
    assert _generate(images, out) == 0
    assert read_volume(out / "superpix-MIDDLE_2.nii.gz").array.shape == (5, 20, 24)


def test_a_damaged_output_is_made_again(images, tmp_path):
    out = tmp_path / "out"
    assert _generate(images, out) == 0
    before = _files(out)
    (out / "superpix-MIDDLE_2.nii.gz").write_bytes(b"")
    assert _generate(images, out) == 0
    assert _files(out) == before


def test_an_output_that_was_cut_or_exchanged_is_made_again(images, tmp_path):
    """Its header and its date are as they should be."""
    out = tmp_path / "out"
    assert _generate(images, out) == 0
    before = _files(out)
    cut, other = out / "superpix-MIDDLE_2.nii.gz", out / "superpix-MIDDLE_10.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-40])
    shutil.copy(out / "superpix-MIDDLE_1.nii.gz", other)
    assert _generate(images, out) == 0
    assert _files(out) == before


def test_scans_of_one_number_and_scans_of_one_value_are_said(images, tmp_path, capsys):
    write_volume(images / "image_3.nii.gz", np.full((4, 20, 24), 7, np.int16), GEOMETRY)
    shutil.copy(images / "image_1.nii.gz", images / "image_4.nii")
    assert _generate(images, tmp_path / "out") == 1
    told = capsys.readouterr().err
    assert f"scan 3 failed: {images}/image_3.nii.gz: every voxel has the value 7" in told
    assert f"{images}/image_4.nii left out: only image_4.nii.gz is read" in told
    assert not (tmp_path / "out/superpix-MIDDLE_3.nii.gz").exists()
    shutil.copy(images / "image_1.nii.gz", images / "image_001.nii.gz")
    assert _generate(images, tmp_path / "out") == 1
    assert "image_1.nii.gz and image_001.nii.gz: both are number 1" in capsys.readouterr().err


def test_scans_of_another_folder_with_the_same_numbers_are_refused(images, tmp_path, capsys):
    assert _generate(images, tmp_path / "out") == 0
    others = Path(shutil.copytree(images, tmp_path / "others"))
    assert _generate(others, tmp_path / "out") == 0  # the same scans
    _scans(others, (1,), shape=(5, 20, 24))
    assert _generate(others, tmp_path / "out") == 1
    assert f"already holds a scan 1, from {images}" in capsys.readouterr().err


def test_one_bad_scan_does_not_stop_the_others(images, tmp_path, capsys):
    whole = (images / "image_2.nii.gz").read_bytes()
    (images / "image_2.nii.gz").write_bytes(whole[: len(whole) // 2])
    assert _generate(images, tmp_path / "out") == 1
    assert {"superpix-MIDDLE_1.nii.gz", "superpix-MIDDLE_10.nii.gz"} == set(_files(tmp_path / "out")) - {
        "parameters.json"
    }
    message = capsys.readouterr().err
    assert "scan 2 failed" in message and "image_2.nii.gz" in message and "Traceback" not in message


def test_other_parameters_are_refused_until_overwritten(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert _generate(images, out) == 0
    before = _files(out)
    assert _generate(images, out, "--min-size", "70") == 1
    assert "min_size 50 and not 70" in capsys.readouterr().err
    assert _files(out) == before
    assert _generate(images, out, "--min-size", "70", "--overwrite") == 0
    assert _generate(images, tmp_path / "fresh", "--min-size", "70") == 0
    assert _files(out) == _files(tmp_path / "fresh")


def test_files_of_unknown_origin_are_refused(images, tmp_path, capsys):
    out = tmp_path / "out"
    assert _generate(images, out) == 0
    (out / "parameters.json").unlink()
    assert _generate(images, out) == 1
    assert "no parameters.json that says how they were made" in capsys.readouterr().err


def test_a_folder_without_scans_and_one_that_is_missing_are_errors(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert _generate(tmp_path / "empty", tmp_path / "out") == 1
    assert "no image_<number>.nii.gz" in capsys.readouterr().err
    assert _generate(tmp_path / "nowhere", tmp_path / "out") == 1
    assert "no such folder" in capsys.readouterr().err


def test_memory_below_one_scan_is_refused(images, tmp_path, capsys):
    assert _generate(images, tmp_path / "out", "--max-memory", "1M") == 1
    assert "the largest scan alone needs" in capsys.readouterr().err


def test_a_data_set_is_found_by_its_name(images, tmp_path, monkeypatch, capsys):
    row = Dataset("images", "MR", 50, {}, "supervoxels_50")
    monkeypatch.setattr("supervoxels.generate.DATASETS", {"TINY": row})
    assert main(["TINY", "--data-root", str(tmp_path), "--backend", "threading"]) == 0
    assert _generate(images, tmp_path / "plain") == 0
    assert _files(tmp_path / "supervoxels_50") == _files(tmp_path / "plain")
    assert main(["HUGE"]) == 1
    assert "config.py knows TINY" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["images", "out"],
        ["images", "out", "--min-size", "0"],
        ["NAME", "--min-size", "5"],
        ["images", "out", "--min-size", "5", "--max-memory", "lots"],
        ["images", "out", "--min-size", "5", "--patient-threshold", "50"],
        ["images", "out", "--min-size", "5", "--data-root", "elsewhere"],
        ["images", "out", "--slices", "--patient-threshold", "50", "--sigma", "2"],
        ["CHAOST2", "--slices", "--patient-threshold", "40"],
    ],
)
def test_wrong_arguments_are_explained_and_leave_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGINT])
@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX systems")
def test_a_run_stopped_in_the_middle_leaves_whole_files_and_is_completed_by_the_next(tmp_path, stop):
    images = _scans(tmp_path / "images", range(1, 7), shape=(24, 96, 96))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "supervoxels.generate", str(images), str(out), "--min-size", "50", "--jobs", "1"]
    # a shell's background job ignores Ctrl-C, and so would all it starts, these tests among it
    heed = functools.partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    options = {"stderr": subprocess.PIPE, "start_new_session": True, "preexec_fn": heed}
    with subprocess.Popen(command, cwd=ROOT, **options) as running:
        deadline = time.monotonic() + 60
        while len(list(out.glob("super*"))) < 2 and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert running.poll() is None, "the run ended before it could be stopped"
        os.killpg(running.pid, stop)
        message = running.communicate()[1].decode()
    assert running.returncode == (130 if stop == signal.SIGINT else -signal.SIGKILL), message
    assert "Traceback" not in message
    stopped = list(out.glob("super*"))
    assert 0 < len(stopped) < 6
    for path in stopped:
        assert read_volume(path).array.shape == (24, 96, 96)
    assert main(command[3:]) == 0
    assert main([str(images), str(tmp_path / "fresh"), "--min-size", "50", "--backend", "threading"]) == 0
    fresh = _files(tmp_path / "fresh")
    assert {name: content for name, content in _files(out).items() if name in fresh} == fresh


def test_superpixels_of_every_slice(images, tmp_path, capsys):
    options = ["--slices", "--patient-threshold", "10", "--min-size", "30", "--backend", "threading"]
    assert main([str(images), str(tmp_path / "flat"), *options]) == 0
    for number in (2, 10):
        scan = read_volume(images / f"image_{number}.nii.gz")
        found = read_volume(tmp_path / f"flat/superpix-MIDDLE_{number}.nii.gz")
        assert np.array_equal(found.array, superpixels(scan.array, 10.0, min_size=30))
    assert main([str(images), str(tmp_path / "flat"), "--min-size", "30"]) == 1
    assert "other parameters" in capsys.readouterr().err
