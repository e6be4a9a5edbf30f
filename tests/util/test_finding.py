"""Every command looks into folders alike: links once, nothing opened that blocks, nothing left out without a word."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from util.errors import UserError
from util.finding import find_files, numbered, others, stem, with_voxels


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def names(folder: Path, **options) -> list[str]:
    return [path.relative_to(folder).as_posix() for path in find_files(folder, **options).files]


def test_a_linked_folder_is_followed_once_and_its_own_name_counts(tmp_path):
    touch(tmp_path, "elsewhere/z.nii.gz", "in/a.nii.gz", "in/sub/b.nii.gz")
    (tmp_path / "in/linked").symlink_to("../elsewhere")
    (tmp_path / "in/twin").symlink_to("../elsewhere")
    (tmp_path / "in/a_sub").symlink_to("sub")
    assert names(tmp_path / "in") == ["a.nii.gz", "sub/b.nii.gz", "linked/z.nii.gz"]
    remarks = find_files(tmp_path / "in").remarks
    assert len(remarks) == 2 and all("not followed" in line for line in remarks)


@pytest.mark.parametrize("target", ["..", ".", "../..", "../in"])
def test_links_that_lead_back_up_end(tmp_path, target):
    touch(tmp_path, "in/a.nii.gz", "beside/b.nii.gz")
    (tmp_path / "in/up").symlink_to(target)
    assert names(tmp_path / "in") == ["a.nii.gz"]
    assert "leads back" in find_files(tmp_path / "in").remarks[0]


def test_dangling_links_are_named_and_a_scan_that_is_gone_is_lost(tmp_path):
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "README").symlink_to("nowhere/README")
    (tmp_path / "scan.nii.gz").symlink_to("nowhere/scan.nii.gz")
    (tmp_path / "round.nii.gz").symlink_to("round.nii.gz")
    found = find_files(tmp_path)
    assert [path.name for path in found.files] == ["a.nii.gz"]
    assert found.remarks == [f"{tmp_path}/README: is a link to nowhere/README, which is not there"]
    assert [line.split(":")[0] for line in found.lost] == [f"{tmp_path}/round.nii.gz", f"{tmp_path}/scan.nii.gz"]


def test_pipes_and_sockets_are_never_opened(tmp_path):
    touch(tmp_path, "a.nii.gz")
    os.mkfifo(tmp_path / "pipe.nii.gz")
    (tmp_path / "device.nii.gz").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        found = find_files(tmp_path)
    assert [path.name for path in found.files] == ["a.nii.gz"]
    assert len(found.remarks) == 3 and all("a pipe, a socket or a device" in line for line in found.remarks)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
def test_what_may_not_be_read_is_named_as_somebody_who_is_not_root(tmp_path):
    touch(tmp_path, "a.nii.gz", "notes.txt", "pat2/b.nii.gz")
    (tmp_path / "notes.txt").chmod(0)
    (tmp_path / "pat2").chmod(0)
    script = (
        "import os, sys; from util.finding import find_files; from pathlib import Path; os.chdir(sys.argv[1]);"
        "os.setuid(65534); found = find_files(Path()); print([str(p) for p in found.files], *found.lost, sep='|')"
    )
    (tmp_path).chmod(0o755)
    run = subprocess.run(
        [sys.executable, "-c", script, tmp_path], cwd=ROOT, capture_output=True, encoding="utf-8", check=False
    )
    if run.returncode and "Permission" in run.stderr:
        pytest.skip("the folder of the tests is closed for others")
    assert run.stdout.strip().split("|") == [
        "['a.nii.gz']",
        "notes.txt: may not be read; change its permissions",
        "pat2: cannot be looked into (Permission denied)",
    ]


@pytest.mark.parametrize("mark", ["predictions.json", "preparation.json", "run.json"])
def test_results_of_earlier_calls_are_no_scans(tmp_path, mark):
    touch(tmp_path, "a.nii.gz", f"one/{mark}", "one/a.nii.gz", "one/deep/b.nii.gz")
    found = find_files(tmp_path)
    assert [path.name for path in found.files] == ["a.nii.gz"]
    assert found.remarks == [f"{tmp_path}/one: holds results of an earlier call ({mark}), no scans"]


def test_a_folder_can_be_left_out_and_folders_below_as_well(tmp_path):
    touch(tmp_path, "a.nii.gz", "out/a.nii.gz", "deep/b.nii.gz", ".hidden/c.nii.gz")
    assert names(tmp_path, besides=tmp_path / "out") == ["a.nii.gz", "deep/b.nii.gz"]
    assert names(tmp_path, deep=False) == ["a.nii.gz"]


def test_hidden_scans_are_said_and_the_companions_of_macos_are_not(tmp_path):
    touch(tmp_path, ".scan.nii.gz", "._a.nii.gz", ".DS_Store", "a.nii.gz")
    assert find_files(tmp_path).remarks == [f"{tmp_path}/.scan.nii.gz: is hidden, left out"]


def test_endings_count_in_any_case_and_pairs_are_one_volume(tmp_path):
    touch(tmp_path, "b.NII.GZ", "c.nrrd", "d.hdr", "d.img", "e.MHD", "e.raw", "notes.txt")
    assert [stem(Path(name)) for name in ("b.NII.GZ", "x.y.Nii", "d.hdr")] == ["b", "x.y", "d"]
    assert with_voxels(tmp_path / "d.hdr") == (tmp_path / "d.hdr", tmp_path / "d.img")
    taken = [path for path in find_files(tmp_path).files if path.suffix in (".GZ", ".nrrd", ".hdr", ".MHD")]
    assert others(find_files(tmp_path).files, taken) == [f"1 other file left out: {tmp_path}/notes.txt"]


def test_numbered_scans_that_are_nearly_named_so_are_said_and_two_of_one_number_refused(tmp_path):
    touch(
        tmp_path, "image_1.nii.gz", "image_2.NII.GZ", "image_3.nii", "image_10.nii.gz", "label_1.nii.gz", "image_x.nii"
    )
    found, remarks, _ = numbered(tmp_path, "image")
    assert list(found) == [1, 10]
    assert [line.split(" left out")[0] for line in remarks] == [f"{tmp_path}/image_2.NII.GZ", f"{tmp_path}/image_3.nii"]
    touch(tmp_path, "image_007.nii.gz", "image_7.nii.gz")
    with pytest.raises(UserError, match=r"image_7\.nii\.gz and image_007\.nii\.gz: both are number 7"):
        numbered(tmp_path, "image")
