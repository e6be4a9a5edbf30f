"""Episodes of sub-volumes: cut, warped, cropped; episode k is a pure function of (seed, k)."""

import dataclasses

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dataloaders.crops import CropEpisodes, crop_bounds, crop_origins
from dataloaders.episodes import episode_loader
from dataloaders.samplers import CropsSampler
from dataloaders.scans import Scan
from dataloaders.volume_augmentation import Affine, VolumeWarp
from tests.dataloaders.test_episodes import same
from tests.options import EPISODE
from util.errors import UserError
from util.volume import Geometry

OPTIONS = EPISODE | dict(elastic=0.0, crop=(4, 32, 40))
STILL = OPTIONS | dict(gamma=(1, 1), rotation=0, shift=0, shift_slices=0, shear=0, zoom=(1, 1))


def scan(number: int, depth: int = 9, side: int = 48) -> Scan:
    """Noise whose voxels tell where they are, with a ball in it, on anisotropic voxels."""
    z, y, x = np.indices((depth, side, side))
    ball = ((z - depth / 2) / 3) ** 2 + ((y - 20) / 9) ** 2 + ((x - 30) / 7) ** 2 <= 1
    image = np.random.default_rng(number).standard_normal(z.shape).astype(np.float32)
    return Scan(number, image, None, ball.astype(np.int32), Geometry((1.0, 1.0, 6.0)), z.shape)


def make(scans, options=OPTIONS, seed=7, **changed) -> CropEpisodes:
    sampler = CropsSampler([scan.areas for scan in scans], depth=options["crop"][0], min_size=30)
    return CropEpisodes(scans, sampler, options | changed, seed)


@pytest.fixture(scope="module")
def episodes() -> CropEpisodes:
    return make([scan(number) for number in range(3)])


@pytest.mark.parametrize("warp", ["affine", "published"])
@pytest.mark.parametrize("augment", ["one", "both"])
def test_shapes_and_values(warp, augment):
    made = make([scan(0), scan(1)], warp=warp, augment=augment)
    for number in range(20):
        episode = made[number]
        assert episode.support_images.shape == episode.query_images.shape == (1, 1, 1, 4, 32, 40)
        assert episode.support_masks.any() and set(episode.support_masks.unique().tolist()) <= {0.0, 1.0}
        assert episode.support_images.isfinite().all() and episode.query_images.isfinite().all()


def test_scans_smaller_than_a_window_give_what_they_have():
    made = make([scan(0, depth=3, side=36), scan(1)])
    assert made.shapes == {(3, 32, 36), (4, 32, 40)}
    assert {made[number].query_masks.shape[2:] for number in range(30)} == {(3, 32, 36), (4, 32, 40)}


@pytest.mark.parametrize("workers", [0, 2])
def test_any_number_of_workers_and_any_start_give_the_same(episodes, workers):
    for first in (0, 3):
        loaded = list(episode_loader(episodes, first=first, last=first + 3, batch_size=2, workers=workers))
        for step, batch in enumerate(loaded, start=first):
            assert same(batch, type(batch).stack([episodes[2 * step], episodes[2 * step + 1]]))


def test_other_seeds_and_numbers_differ(episodes):
    other = make(episodes.scans, seed=8)
    assert not same(episodes[0], other[0]) and not same(episodes[0], episodes[1])


def test_without_a_change_the_crop_is_a_piece_of_the_scan(episodes):
    """Ranges that change nothing: image and mask are found, voxel for voxel, at one place of the scan."""
    still = make([scan(0)], STILL)
    whole = still.scans[0]
    views = np.lib.stride_tricks.sliding_window_view(whole.image, (4, 32, 40))
    for number in range(10):
        episode = still[number]
        for image, mask in (
            (episode.support_images, episode.support_masks),
            (episode.query_images, episode.query_masks),
        ):
            corner = np.argwhere(np.isclose(views[..., 0, 0, 0], image[0, 0, 0, 0, 0, 0], atol=1e-5))
            (z, y, x) = next(c for c in corner if np.allclose(views[tuple(c)], image[0, 0, 0], atol=1e-4))
            piece = whole.segments[z : z + 4, y : y + 32, x : x + 40]
            assert np.array_equal(mask[0, 0].numpy(), piece)


def test_exactly_one_side_is_warped_and_gamma_looks_at_the_whole_scan():
    made = make([scan(0)], STILL, shift=5.0)
    image = made.scans[0].image
    views = np.lib.stride_tricks.sliding_window_view(image, (4, 32, 40))

    def untouched(piece) -> bool:
        return bool((np.abs(views - piece).max((-1, -2, -3)) < 1e-4).any())

    for number in range(6):
        episode = made[number]
        sides = [untouched(images[0, 0, 0].numpy()) for images in (episode.support_images, episode.query_images)]
        assert sorted(sides) == [False, True]
    bright = make([scan(0)], STILL, gamma=(1.4, 1.4))
    low, span = image.min(), np.ptp(image) + 1e-5
    views = span * ((views - low + 1e-5) / span) ** 1.4 + low
    assert any(untouched(e[0, 0, 0].numpy()) for e in (bright[0].support_images, bright[0].query_images))


def test_a_support_that_is_warped_away_stays_where_it_was():
    """Shifts by many slices empty many warped windows; the support never is [adnet 5.2], the query may be."""
    made = make([scan(0, depth=25)], shift_slices=12.0)
    pairs = [made[number] for number in range(40)]
    assert all(episode.support_masks.any() for episode in pairs)
    assert not all(episode.query_masks.any() for episode in pairs)


def test_a_warped_window_is_a_piece_of_the_warped_volume():
    warp = Affine.draw(np.random.default_rng(3), scan(0), OPTIONS)
    volume = scan(0).image.astype(np.float64)
    whole = warp.region(volume, (0, 0, 0), volume.shape, order=1)
    part = warp.region(volume, (2, 5, 7), (4, 30, 20), order=1)
    np.testing.assert_allclose(part, whole[2:6, 5:35, 7:27], rtol=0, atol=1e-12)


def test_rotations_turn_millimetres():
    """Without shear and zoom the map keeps distances in the patient, however thick the slices are."""
    spacing = np.array((1.25, 1.25, 7.7))
    thick = dataclasses.replace(scan(0), geometry=Geometry(tuple(spacing)))
    warp = Affine.draw(np.random.default_rng(0), thick, STILL | dict(rotation=30.0))
    in_mm = spacing[::-1, None] * warp.matrix / spacing[::-1]
    np.testing.assert_allclose(in_mm @ in_mm.T, np.eye(3), atol=1e-12)
    assert Rotation.from_matrix(in_mm[::-1, ::-1]).magnitude() > 0.1


def test_a_shift_moves_by_voxels_about_nothing_else():
    volume = scan(0).image
    warp = VolumeWarp(np.eye(3), np.array([1.0, 2.0, 3.0]))
    np.testing.assert_array_equal(warp.region(volume, (0, 0, 0), (5, 20, 20), order=1), volume[1:6, 2:22, 3:23])


@pytest.mark.parametrize(("size", "length"), [(215, 256), (40, 48), (48, 48), (30, 300)])
def test_every_crop_lies_in_the_image_and_holds_the_segment(size, length):
    """All but the last labelled row, which the published bounds may cut off; every origin is reached."""
    generator = np.random.default_rng(0)
    reached = set()
    for _ in range(300):
        low, high = np.sort(generator.integers(length, size=2))
        first, last = crop_bounds(int(low), int(high), size, length - size)
        assert 0 <= first <= last <= length - size
        reached |= {first, last}
        if size > high - low:
            assert last <= low and first + size >= high
    assert {0, length - size} <= reached


def test_crop_origins_are_uniform_between_their_bounds():
    shown = np.zeros((48, 48), dtype=bool)
    shown[20:30, 5:12] = True
    origins = {crop_origins(shown, (32, 40), place) for place in np.random.default_rng(0).random((3000, 2))}
    assert origins == {(y, x) for y in range(17) for x in range(6)}
    assert crop_origins(np.zeros_like(shown), (32, 40), (0.9, 0.9)) == (0, 0)


def test_elastic_volumes_are_refused():
    with pytest.raises(UserError, match=r"episode\.elastic=0"):
        make([scan(0)], elastic=10.0)
