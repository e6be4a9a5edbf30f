"""Any scan comes onto the training grid and back: exactly where nothing is interpolated, closely where it is."""

import itertools

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from data.phantom_raw import centred, truth
from dataloaders.raw.preparation import Plan, along_axes
from dataloaders.raw.regrid import Preparation, observe, onto_own_grid, onto_training_grid
from util.volume import Geometry, Volume

STORED = (1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0)  # as CHAOST2 lies
TRAINED = observe(Plan(percentile=99.5), [Geometry((5.0, 5.0, 7.7), (0, 0, 0), STORED)], 64)
COARSE = observe(Plan(percentile=99.5), [Geometry((5.0, 5.0, 15.4), (0, 0, 0), STORED)], 64)
MIDDLE = np.array([0.0, 0.0, 28.0])
FIELD = (320.0, 320.0, 246.4)


def stored_otherwise(volume: Volume, order: tuple[int, ...], signs: tuple[int, ...]) -> Volume:
    """The same voxels at the same places, axes x, y, z in another order and direction."""
    array = volume.array.transpose([2 - order[2 - k] for k in range(3)])
    axes, spacing = np.reshape(volume.geometry.direction, (3, 3))[:, order], np.array(volume.geometry.spacing)[[*order]]
    last = (np.array(array.shape[::-1]) - 1) * (np.array(signs) < 0)
    origin = volume.geometry.origin + axes @ (last * spacing)
    geometry = Geometry(tuple(spacing.tolist()), tuple(origin.tolist()), tuple((axes * signs).ravel().tolist()))
    return Volume(array[tuple(slice(None, None, sign) for sign in signs[::-1])].copy(), geometry)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * float((a & b).sum()) / float(a.sum() + b.sum())


@pytest.fixture(scope="module")
def scan() -> Volume:
    """Noise on a small grid that is the training grid."""
    generator = np.random.default_rng(0)
    array = generator.integers(0, 900, (6, 64, 64)).astype(np.int16)
    return Volume(array, Geometry((5.0, 5.0, 7.7), (-150.0, 160.0, -20.0), STORED))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", [(1, 1, 1), (-1, 1, 1), (1, -1, -1), (-1, -1, -1)])
def test_every_way_to_store_a_scan_gives_the_same_voxels_and_comes_back_exactly(scan, order, signs):
    expected, _ = onto_training_grid(scan, None, TRAINED)
    other = stored_otherwise(scan, order, signs)
    prepared, _ = onto_training_grid(other, None, TRAINED)
    np.testing.assert_array_equal(prepared.array, expected.array)
    assert prepared.geometry.matches(expected.geometry, 1e-9)
    back = onto_own_grid(prepared.array.astype(np.float32), prepared.geometry, other)
    np.testing.assert_allclose(back, np.minimum(other.array, prepared.array.max()), atol=1e-3)


def test_a_scan_on_the_training_grid_is_not_touched(scan):
    cut = np.minimum(scan.array, np.percentile(scan.array, 99.5).astype(np.int16))
    prepared, label = onto_training_grid(scan, None, TRAINED)
    np.testing.assert_array_equal(prepared.array, cut)
    assert prepared.geometry.matches(scan.geometry, 1e-12) and not label.array.any()
    same, _ = onto_training_grid(scan, None, TRAINED, prepared=True)
    np.testing.assert_array_equal(same.array, scan.array)


GRIDS = {
    "as trained": ((16, 64, 64), (0, 0, 0)),
    "oblique": ((16, 64, 64), (8, -5, 4)),
    "finer": ((25, 90, 90), (0, 0, 0)),
    "tilted": ((20, 64, 64), (0, 30, 20)),
    "sagittal": ((24, 80, 80), (0, 90, 0)),
}


@pytest.fixture(scope="module")
def round_trips() -> dict[str, dict[int, float]]:
    """Dice of every organ after the way to the training grid and back, against the anatomy on the scan's own grid."""
    found = {}
    for name, (shape, degrees) in GRIDS.items():
        axes = Rotation.from_euler("zyx", degrees, degrees=True).as_matrix()
        field = FIELD if name != "sagittal" else FIELD[::-1]
        geometry = centred(MIDDLE, axes, field, shape)
        label = truth("chaost2", 3, 0, geometry, shape)
        image = Volume(label * 100, geometry)
        prepared, organs = onto_training_grid(image, Volume(label, geometry), COARSE)
        assert prepared.array.shape[1:] == (64, 64)
        shares = {i: onto_own_grid((organs.array == i).astype(np.float32), organs.geometry, image) for i in range(1, 5)}
        found[name] = {i: dice(share > 0.5, label == i) for i, share in shares.items()}
    return found


@pytest.mark.parametrize("name", list(GRIDS))
def test_organs_are_where_they_were(round_trips, name):
    """Exactly where the grid is kept; else voxels of 5 x 5 x 15.4 mm cost less than half of one in shift would."""
    least = 0.999 if name in ("as trained", "oblique") else 0.91
    assert min(round_trips[name].values()) > least, round_trips[name]


def test_what_is_cut_off_is_background_and_the_last_slice_is_not(scan):
    geometry = Geometry((5.0, 5.0, 2.0), (-200.0, 200.0, -20.0), STORED)
    wide = Volume(np.ones((5, 80, 80), np.int16), geometry)
    prepared, _ = onto_training_grid(wide, None, TRAINED)
    assert prepared.array.shape == (1, 64, 64)
    back = onto_own_grid(np.ones(prepared.array.shape, np.float32), prepared.geometry, wide)
    assert (back[:, 8:-8, 8:-8] == 1).all()
    assert not back[:, :7].any() and not back[:, :, -7:].any()


def test_ct_takes_its_spacing_from_each_scan():
    """512 pixels: 32 off at each side, a spacing 1.75 times as large; a coarser matrix shows the same."""
    plan = Plan(size=256, window=(-125, 275), border=1 / 16, shrink=1.75)
    trained = observe(plan, [Geometry((1.4, 1.4, 3.0), (0, 0, 0), STORED)] * 2, 256)
    assert trained.plan.spacing is None
    for pixels, step in ((512, 0.8), (256, 1.6)):
        image = Volume(np.zeros((3, pixels, pixels), np.int16), Geometry((step, step, 3.0), (0, 0, 0), STORED))
        prepared, _ = onto_training_grid(image, None, trained)
        assert prepared.array.shape == (3, 256, 256)
        assert np.allclose(prepared.geometry.spacing, (1.4, 1.4, 3.0))


def test_short_axis_slices_stay_slices():
    axes = Rotation.from_euler("zyx", (40, 35, 20), degrees=True).as_matrix()
    trained = observe(Plan(percentile=99.5), [Geometry((5.0, 5.0, 7.7), (0, 0, 0), tuple(axes.ravel()))], 64)
    assert not trained.axial
    scan = Volume(
        np.random.default_rng(0).integers(0, 99, (4, 64, 64)), centred(MIDDLE, axes, (320, 320, 30.8), (4, 64, 64))
    )
    prepared, _ = onto_training_grid(scan, None, trained, prepared=True)
    assert sorted(prepared.array.ravel()) == sorted(scan.array.ravel())


def test_what_training_scans_were_survives_a_checkpoint():
    assert Preparation.from_plain(TRAINED.as_plain()) == TRAINED
    flipped = observe(Plan(), [Geometry((1, 1, 3), (0, 0, 0), (-1.0, 0, 0, 0, -1.0, 0, 0, 0, 1.0))], 64)
    assert flipped.towards == (-1.0, -1.0, 1.0) and TRAINED.towards == (1.0, -1.0, 1.0)


def test_along_axes_keeps_every_voxel_in_its_place(scan):
    """The signal at a physical point is the same before and after, whatever the storage."""
    tilted = Geometry(
        (5.0, 4.0, 7.7),
        (3.0, -2.0, 9.0),
        tuple(Rotation.from_euler("zyx", (100, 8, -5), degrees=True).as_matrix().ravel()),
    )
    volume = Volume(scan.array[:, :40, :50], tilted)
    turned = along_axes(volume, (1.0, 1.0, 1.0))
    at = np.argwhere(turned.array == turned.array)[::997]
    axes = np.reshape(turned.geometry.direction, (3, 3)) * turned.geometry.spacing
    points = np.array(turned.geometry.origin) + at[:, ::-1] @ axes.T
    own = np.reshape(tilted.direction, (3, 3)) * tilted.spacing
    voxels = np.rint((points - tilted.origin) @ np.linalg.inv(own).T).astype(int)[:, ::-1]
    assert (volume.array[tuple(voxels.T)] == turned.array[tuple(at.T)]).all()
    assert (np.reshape(turned.geometry.direction, (3, 3)).diagonal() > 0.9).all()


def test_straightening_a_tilted_scan_invents_no_values():
    """Cubic splines overshoot beside a sharp edge; what no voxel had is cut."""
    array = np.zeros((8, 20, 20), np.float32)
    array[2:6, 5:15, 5:15] = 1000
    cos, sin = np.cos(np.radians(20)), np.sin(np.radians(20))
    tilted = Geometry((2.0, 2.0, 5.0), direction=(1, 0, 0, 0, -cos, -sin, 0, -sin, cos))
    preparation = Preparation(Plan(spacing=(2.0, 2.0, 5.0), size=None), (1.0, -1.0, 1.0), axial=True)
    image, _ = onto_training_grid(Volume(array, tilted), None, preparation)
    assert (image.array.min(), image.array.max()) == (0, 1000)
    assert image.array.mean() == pytest.approx(array.sum() / image.array.size, rel=0.1)
