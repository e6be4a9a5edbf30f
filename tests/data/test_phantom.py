"""Synthetic abdomens: reproducible, anatomically plausible, not solved by a threshold, written whole."""

import json

import numpy as np
import pytest
from scipy.ndimage import label as components

from data.parts.anatomy import LABELS, draw_patient, paint
from data.phantom import FIELD_OF_VIEW, MR_CONTRAST, Scan, main, phantom_scan, write_scans
from tests.commands import kill_when
from util.volume import read_volume

SMALL = {"size": 56, "slices": 32}
TINY = {"size": 32, "slices": 4}
MILLILITRES = {1: (900, 2400), 2: (80, 260), 3: (80, 260), 4: (50, 500)}


@pytest.fixture(scope="module")
def scans() -> list[Scan]:
    return [phantom_scan(3, number, **SMALL) for number in range(1, 5)]


def positions(scan: Scan, organ: int) -> np.ndarray:
    """Voxels of the organ `(3, N)` in world millimetres x, y, z."""
    voxels = np.argwhere(scan.label == organ)[:, ::-1].T
    direction = np.reshape(scan.geometry.direction, (3, 3))
    return direction @ (voxels * np.reshape(scan.geometry.spacing, (3, 1))) + np.reshape(scan.geometry.origin, (3, 1))


def best_interval_dice(image: np.ndarray, mask: np.ndarray) -> float:
    """Dice of the best of all intensity intervals: what a threshold that knows the answer would reach."""
    edges = np.unique(np.percentile(image[image > np.percentile(image, 30)], np.linspace(0, 100, 40)))
    inside, everywhere = (
        np.concatenate([[0], np.histogram(values, edges)[0].cumsum()]) for values in (image[mask], image)
    )
    hits, chosen = (counts[None, :] - counts[:, None] for counts in (inside, everywhere))
    return float((2 * hits / np.maximum(chosen + mask.sum(), 1)).max())


def test_a_scan_depends_on_nothing_but_seed_number_and_grid():
    first = phantom_scan(1, 2, **TINY)
    phantom_scan(1, 1, **TINY)
    again = phantom_scan(1, 2, **TINY)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert first.geometry == again.geometry
    for other in (phantom_scan(1, 3, **TINY), phantom_scan(2, 2, **TINY)):
        assert not np.array_equal(first.image, other.image)
        assert not np.array_equal(first.label, other.label)


def test_any_number_of_jobs_writes_the_same_files(tmp_path):
    for jobs in (1, 2):
        write_scans(tmp_path / str(jobs), scans=2, seed=4, jobs=jobs, **TINY)
    files = sorted(path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*.nii.gz"))
    assert len(files) == 4
    for file in files:
        one, two = (read_volume(tmp_path / jobs / file) for jobs in ("1", "2"))
        assert np.array_equal(one.array, two.array)
        assert one.geometry == two.geometry


def test_organs_are_whole_and_of_human_size(scans):
    for scan in scans:
        assert scan.image.dtype == np.int16
        assert scan.label.dtype == np.uint8
        assert set(np.unique(scan.label)) == {0, *LABELS}
        for organ, (low, high) in MILLILITRES.items():
            mask = scan.label == organ
            assert low < mask.sum() * np.prod(scan.geometry.spacing) / 1000 < high, LABELS[organ]
            assert np.bincount(components(mask)[0].ravel())[1:].max() > 0.95 * mask.sum(), LABELS[organ]
            assert mask.any((1, 2)).sum() >= 5, LABELS[organ]
        assert sum(len(np.unique(slice_labels)) >= 4 for slice_labels in scan.label) >= 8


def test_organs_lie_on_their_sides_and_inside_the_body(scans):
    for scan in scans:
        liver, right, left, spleen = (positions(scan, organ).mean(1) for organ in (1, 2, 3, 4))
        assert right[0] < -30 < 30 < left[0]  # the world's x axis points to the patient's left
        assert liver[0] < -20 < 60 < spleen[0]
        assert liver[1] < right[1]  # and y to the back
        assert spleen[2] > left[2]  # and z to the head
        rows = np.argwhere(scan.label == 1)[:, 1].mean(), np.argwhere(scan.label == 2)[:, 1].mean()
        columns = np.argwhere(scan.label == 1)[:, 2].mean(), np.argwhere(scan.label == 4)[:, 2].mean()
        assert rows[0] > rows[1]  # stored as CHAOST2: the back on top, the liver on the left
        assert columns[0] < columns[1]
        for axis, edge in ((1, 0), (1, -1), (2, 0), (2, -1)):
            assert not scan.label.take(edge, axis).any()


def test_organs_are_enclosed_by_trunk_tissue():
    patient = draw_patient(np.random.default_rng(0))
    line = np.linspace(-160, 160, 81, dtype=np.float32)
    x, y = np.meshgrid(line, line)
    points = np.stack([x.ravel(), y.ravel(), np.full(x.size, 20, np.float32)])
    tissue = dict.fromkeys(MR_CONTRAST, (1.0, 0.0)) | {"air": (0.0, 0.0)}
    body, labels = paint(patient, points, 4.0, tissue)
    assert np.allclose(labels.sum(0), 1, atol=1e-5)
    assert body.reshape(x.shape)[labels[1:].sum(0).reshape(x.shape) > 0.5].min() > 0.99
    distance_from_air = [
        np.abs(points[:2, body < 0.5].T - voxel).sum(1).min() for voxel in points[:2, labels[1] > 0.5].T
    ]
    assert min(distance_from_air) > 8


def test_the_anatomy_can_be_asked_at_any_points_in_any_order():
    patient = draw_patient(np.random.default_rng(0))
    points = np.random.default_rng(1).uniform(-120, 120, (3, 500)).astype(np.float32)
    values = {tissue: (mean, within) for tissue, (mean, _, within) in MR_CONTRAST.items()}
    signal_values, labels = paint(patient, points, 2.0, values)
    shuffled = np.random.default_rng(2).permutation(500)
    signal_again, labels_again = paint(patient, points[:, shuffled], 2.0, values)
    assert np.allclose(signal_values[shuffled], signal_again, atol=1e-5)
    assert np.allclose(labels[:, shuffled], labels_again, atol=1e-5)


def test_another_grid_shows_the_same_anatomy():
    fine, coarse = (phantom_scan(5, 1, size, 32) for size in (96, 48))
    for organ in LABELS:
        assert np.allclose(positions(fine, organ).mean(1), positions(coarse, organ).mean(1), atol=3)
        volumes = [(scan.label == organ).sum() * np.prod(scan.geometry.spacing) for scan in (fine, coarse)]
        assert 0.85 < volumes[0] / volumes[1] < 1.15
    for scan, size in ((fine, 96), (coarse, 48)):
        assert np.allclose(np.multiply(scan.geometry.spacing, (size, size, 32)), FIELD_OF_VIEW)


def test_intensity_alone_does_not_find_the_organs(scans):
    dice = np.array([[best_interval_dice(scan.image, scan.label == organ) for organ in LABELS] for scan in scans])
    assert dice.mean() < 0.45
    assert dice.max() < 0.8


def test_the_brighter_of_spleen_and_kidney_changes_between_patients():
    scans = [phantom_scan(6, number, size=32, slices=16) for number in range(10)]
    order = {scan.image[scan.label == 4].mean() > scan.image[scan.label == 2].mean() for scan in scans}
    assert order == {True, False}


def command(folder, *more: str) -> list[str]:
    return [str(folder), "--scans", "2", "--size", "32", "--slices", "4", "--jobs", "1", *more]


def test_the_command_writes_scans_with_geometry_and_keeps_them(tmp_path, capsys):
    assert main(command(tmp_path)) == 0
    folder = tmp_path / "phantom_MR_normalized"
    assert sorted(path.name for path in folder.iterdir()) == [
        "image_1.nii.gz",
        "image_2.nii.gz",
        "label_1.nii.gz",
        "label_2.nii.gz",
    ]
    image, label = read_volume(folder / "image_2.nii.gz"), read_volume(folder / "label_2.nii.gz")
    scan = phantom_scan(1, 2, **TINY)
    assert np.array_equal(image.array, scan.image)
    assert np.array_equal(label.array, scan.label)
    assert image.geometry.matches(scan.geometry)
    assert label.geometry.matches(image.geometry)
    assert image.geometry.direction == (1, 0, 0, 0, -1, 0, 0, 0, 1)

    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "label_1.nii.gz").unlink()
    capsys.readouterr()
    assert main(command(tmp_path, "--scans", "3")) == 0
    assert "2 scan(s) written, 1 were there" in capsys.readouterr().out
    kept = [folder / name for name in ("image_2.nii.gz", "label_2.nii.gz")]
    assert all(path.stat().st_mtime_ns == before[path] for path in kept)


def test_other_parameters_are_refused(tmp_path, capsys):
    assert main(command(tmp_path)) == 0
    capsys.readouterr()
    assert main(command(tmp_path, "--seed", "2")) == 1
    message = capsys.readouterr().err
    assert message.count("\n") <= 2
    assert "phantom.json" in message
    assert "another folder" in message


def test_scans_of_unknown_origin_and_a_damaged_manifest_are_refused(tmp_path, capsys):
    assert main(command(tmp_path)) == 0
    (tmp_path / "phantom.json").write_text("{")
    assert main(command(tmp_path)) == 1
    (tmp_path / "phantom.json").unlink()
    assert main(command(tmp_path)) == 1
    assert "no phantom.json" in capsys.readouterr().err


def test_a_file_in_place_of_the_folder_is_refused(tmp_path, capsys):
    (tmp_path / "taken").write_text("")
    assert main(command(tmp_path / "taken")) == 1
    assert "is a file" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [("--scans", "0"), ("--size", "many"), ("--jobs", "0")])
def test_impossible_options_are_refused(tmp_path, wrong):
    with pytest.raises(SystemExit):
        main(command(tmp_path, *wrong))
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_whole_files_and_is_taken_up(tmp_path):
    arguments = [str(tmp_path), "--scans", "40", "--size", "64", "--slices", "8", "--jobs", "1"]
    kill_when(lambda: len(list(tmp_path.rglob("label_*.nii.gz"))) >= 2, "data.phantom", *arguments)
    written = [path for path in tmp_path.rglob("*.nii.gz") if not path.name.startswith(".")]
    assert 4 <= len(written) < 80
    for path in written:
        assert read_volume(path).array.shape == (8, 64, 64)
    assert json.loads((tmp_path / "phantom.json").read_text("utf-8"))["size"] == 64
    assert main([*arguments[:2], "4", *arguments[3:]]) == 0
    assert len(list((tmp_path / "phantom_MR_normalized").glob("[il]*_[1-4].nii.gz"))) == 8
