"""Scans as memory maps: the numbers of the scans in memory, made once, never mixed, removed only if nobody looks."""

import dataclasses
import multiprocessing
import os
import shutil

import numpy as np
import pytest

import config
from data import maps as command
from dataloaders import maps
from dataloaders.maps import Maps, maps_folder
from dataloaders.scans import read_scan, training_mean_and_std
from util.errors import UserError
from util.volume import read_volume, write_volume

PHANTOM = config.DATASETS["PHANTOM"]
NUMBERS = [5, 6]


def made(root, folder, dataset=PHANTOM, **options) -> Maps:
    return Maps(folder, dataset, root, NUMBERS, "supervoxels", labels=True, **options)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("size", [None, 50])
@pytest.mark.parametrize("kind", [np.int16, np.float32])
def test_every_number_is_that_of_the_scan_in_memory(broken, tmp_path, shared, size, kind):
    dataset = dataclasses.replace(PHANTOM, size=size)
    for number in NUMBERS:
        volume = read_volume(PHANTOM.image_file(broken, number))
        write_volume(PHANTOM.image_file(broken, number), volume.array.astype(kind), volume.geometry)
    found = made(broken, tmp_path / "maps", dataset)
    numbers = training_mean_and_std(dataset, broken, NUMBERS) if shared else None
    assert found.mean_and_std() == training_mean_and_std(dataset, broken, NUMBERS)
    for mapped in found.scans(numbers):
        scan = read_scan(dataset, broken, mapped.number, segments="supervoxels", mean_and_std=numbers)
        for key in (3, [1, 4], slice(2, 5), slice(None)):
            np.testing.assert_array_equal(mapped.image[key], scan.image[key], strict=True)
            np.testing.assert_array_equal(mapped.segments[key], scan.segments[key])
        np.testing.assert_array_equal(np.asarray(mapped.image), scan.image, strict=True)
        np.testing.assert_array_equal(mapped.areas, scan.areas, strict=True)
        for name in ("geometry", "shape", "values"):
            assert getattr(mapped, name) == getattr(scan, name)
        assert mapped.image.shape == scan.image.shape and len(mapped.image) == len(scan.image)
        for organ in PHANTOM.organs.values():
            np.testing.assert_array_equal(mapped.organ(organ).any((1, 2)), scan.organ(organ).any((1, 2)))
        assert mapped.segments.dtype == np.uint8 and mapped.image.stored.dtype == kind


def test_what_is_there_is_not_made_again_and_needs_no_look_at_the_scans(tiny, tmp_path, monkeypatch):
    made(tiny, tmp_path / "maps")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").glob("[!.]*")}
    monkeypatch.setattr(maps, "read_volume", None)
    monkeypatch.setattr(maps, "digest", None)
    assert len(made(tiny, tmp_path / "maps").scans()) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").glob("[!.]*")} == before and len(before) == 9


def test_files_that_moved_are_looked_at_and_kept(tiny, tmp_path, monkeypatch):
    shutil.copytree(tiny, tmp_path / "data")  # new dates
    folder = tmp_path / "maps"
    made(tmp_path / "data", folder)
    shutil.move(tmp_path / "data", tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "data")
    monkeypatch.setattr(maps, "read_volume", None)
    made(tmp_path / "data", folder)
    monkeypatch.setattr(maps, "digest", None)  # how they look now was put on record
    made(tmp_path / "data", folder)


@pytest.mark.parametrize("kind", ["image", "label", "supervoxels"])
def test_a_changed_scan_is_mapped_again_and_who_looks_at_the_old_one_keeps_it(broken, tmp_path, kind):
    folder = tmp_path / "maps"
    first = made(broken, folder)
    old = first.scans()[0]
    image, segments = old.image[:], old.segments[:]
    file = maps.source_file(PHANTOM, broken, 5, kind)
    volume = read_volume(file)
    write_volume(file, np.ascontiguousarray(volume.array[::-1]), volume.geometry)
    second = made(broken, folder)
    new, scan = second.scans()[0], read_scan(PHANTOM, broken, 5, segments="supervoxels")
    np.testing.assert_array_equal(new.image[:], scan.image)
    np.testing.assert_array_equal(new.segments[:], scan.segments)
    np.testing.assert_array_equal(new.organ(1).any((1, 2)), scan.organ(1).any((1, 2)))
    np.testing.assert_array_equal(old.image[:], image)
    np.testing.assert_array_equal(old.segments[:], segments)
    count = len(list(folder.glob("*.npy")))
    del first, second
    os.utime(file)
    (folder / next(iter(made(broken, folder)._entries(6)["label"]["arrays"]))).unlink()
    made(broken, folder)  # something is to be made, and nobody looks
    assert len(list(folder.glob("*.npy"))) == 8 < count


@pytest.mark.parametrize("damage", ["cut", "exchange", "record"])
def test_damaged_maps_are_made_again(tiny, tmp_path, damage):
    folder = tmp_path / "maps"
    expected = np.asarray(made(tiny, folder).scans()[0].image)
    files = sorted(folder.glob("image_*.npy"))
    if damage == "cut":
        files[0].write_bytes(files[0].read_bytes()[:-1])
    elif damage == "exchange":
        shutil.copy(files[1], files[0])
    else:
        (folder / maps.RECORD).write_text("{")
    np.testing.assert_array_equal(made(tiny, folder).scans()[0].image, expected)


def test_labels_and_images_of_different_grids_are_refused_whatever_was_mapped_before(broken, tmp_path):
    made(broken, tmp_path / "maps")
    file = PHANTOM.image_file(broken, 5)
    volume = read_volume(file)
    moved = dataclasses.replace(volume.geometry, origin=(1.0, 2.0, 3.0))
    write_volume(file, volume.array, moved)
    Maps(tmp_path / "maps", PHANTOM, broken, NUMBERS, "supervoxels")
    with pytest.raises(UserError, match=r"label_5\.nii.gz: lies on another grid"):
        made(broken, tmp_path / "maps")


def test_several_processes_at_once_make_what_one_makes(tiny, tmp_path):
    context = multiprocessing.get_context("fork")
    running = [context.Process(target=made, args=(tiny, tmp_path / "maps")) for _ in range(4)]
    for process in running:
        process.start()
    for process in running:
        process.join(60)
    assert [process.exitcode for process in running] == [0] * 4
    made(tiny, tmp_path / "alone")
    several, alone = ({p.name: p.read_bytes() for p in (tmp_path / f).glob("*.npy")} for f in ("maps", "alone"))
    assert several == alone and len(alone) == 8
    assert len(made(tiny, tmp_path / "maps").scans()) == 2


def test_the_command_makes_and_removes_unless_somebody_looks(tiny, tmp_path, capsys):
    call = ["PHANTOM", "--data-root", str(tiny), "--maps", str(tmp_path), "--jobs", "1"]
    assert command.main([*call, "--labels"]) == 0
    assert "6 scans, 0.00 GiB" in capsys.readouterr().out
    folder = maps_folder(PHANTOM, tiny, tmp_path)
    looking = made(tiny, folder)
    assert command.main([*call, "--remove"]) == 1
    assert "another process works there" in capsys.readouterr().err
    assert len(looking.scans()[0].image[2:4]) == 2
    scan = looking.scans()[0]
    del looking
    assert command.main([*call, "--remove"]) == 0
    assert "25 files removed" in capsys.readouterr().out and not folder.exists()
    with pytest.raises(UserError, match="was removed or cut while it was in use"):
        scan.image[0]
