"""The fast kernel is the plain algorithm, only faster; and the plain algorithm does what [supervoxels 2] says."""

import time

import numpy as np
import pytest
from scipy import ndimage

from supervoxels import felzenszwalb, foreground_mask, partitions, rescale, supervoxels
from supervoxels.segmentation import OFFSETS, edge_weights
from util.volume import read_volume

SPACINGS = [(1.0, 1.0, 1.0), (7.7, 1.25, 1.25), (0.4, 0.9, 0.7), (3.0, 1.5, 2.0)]


def volumes_of_every_kind(count, seed):
    """Tiny volumes that are hard on ties: plateaus, few grey levels, ramps, tiny and huge numbers, thin shapes."""
    random = np.random.default_rng(seed)
    for index in range(count):
        shape = tuple(random.choice([1, 1, 2, 3, 4, 5, 7, 9, 12, 17], 3))
        kind = index % 8
        noise = random.random(shape)
        if kind == 0:
            yield np.floor(noise * 4)
        elif kind == 1:
            yield rescale(np.floor(noise * random.integers(2, 40)))
        elif kind == 2:
            yield noise * 255
        elif kind == 3:  # a convex ramp: no two costs along it are equal
            yield np.arange(noise.size, dtype=float).reshape(shape) ** 2 / noise.size
        elif kind == 4:  # plateaus with a few odd voxels
            yield np.where(noise < 0.1, noise * 255, np.round(ndimage.uniform_filter(noise, 3) * 3) * 60)
        elif kind == 5:  # neighbours far closer than single precision can tell
            yield 1e6 + np.floor(noise * 5) * 1e-9
        elif kind == 6:  # differences whose squares underflow
            yield noise * 10.0 ** random.integers(-200, -100)
        else:
            yield np.round(noise * 255) * 10.0 ** random.integers(-3, 8)


def test_fast_labels_equal_the_oracle_on_thousands_of_tiny_volumes():
    random = np.random.default_rng(7)
    for index, volume in enumerate(volumes_of_every_kind(3000, seed=1)):
        options = {
            "scale": float(random.choice([0, 1e-45, 1, 1, 30, 500, 10000])),
            "min_size": int(random.choice([0, 1, 2, 5, 20, 100, 5000])),
            "spacing": SPACINGS[random.integers(len(SPACINGS))],
        }
        threads = int(random.integers(1, 4))
        np.testing.assert_array_equal(
            felzenszwalb(volume, threads=threads, **options),
            felzenszwalb(volume, kernel="oracle", **options),
            err_msg=f"volume {index} of shape {volume.shape}, threads {threads}, {options}",
        )


@pytest.mark.parametrize("levels", [2, 4, 1000])
@pytest.mark.parametrize("scale", [1.0, 3000.0])
def test_fast_labels_equal_the_oracle_when_edges_come_in_many_stretches(levels, scale):
    # several times the smallest room for edges, with more ties at one cost than fit into it
    volume = np.floor(np.random.default_rng(levels).random((24, 40, 44)) * levels) * (255 / levels)
    for threads in (1, 2, 3):
        fast = felzenszwalb(volume, min_size=300, scale=scale, spacing=(7.7, 1.25, 1.25), threads=threads)
        oracle = felzenszwalb(volume, min_size=300, scale=scale, spacing=(7.7, 1.25, 1.25), kernel="oracle")
        np.testing.assert_array_equal(fast, oracle)


@pytest.mark.parametrize("scan", [2, 39])
def test_fast_labels_equal_the_oracle_on_real_scans(chaost2, scan):
    image, spacing = _scan(chaost2, scan)
    oracle = felzenszwalb(image, min_size=5000, spacing=spacing, kernel="oracle")
    for threads in (1, 2):
        np.testing.assert_array_equal(felzenszwalb(image, min_size=5000, spacing=spacing, threads=threads), oracle)


@pytest.mark.parametrize("scan", [2, 15])
def test_published_order_reproduces_published_supervoxels(chaost2, scan):
    volume = read_volume(chaost2 / f"chaos_MR_T2_normalized/image_{scan}.nii.gz")
    published = read_volume(chaost2 / f"supervoxels_5000/superpix-MIDDLE_{scan}.nii.gz").array
    x, y, z = volume.geometry.spacing
    made = supervoxels(volume.array, min_size=5000, spacing=(z, x, y), order="published")
    np.testing.assert_array_equal(made, published)


@pytest.mark.parametrize("kernel", ["fast", "oracle"])
@pytest.mark.parametrize("order", ["stable", "published"])
def test_every_segment_is_connected_large_enough_and_numbered_by_its_first_voxel(kernel, order):
    for volume in volumes_of_every_kind(80, seed=2):
        labels = felzenszwalb(volume, min_size=12, scale=200, spacing=(2.0, 1.0, 1.0), kernel=kernel, order=order)
        values, first, sizes = np.unique(labels, return_index=True, return_counts=True)
        np.testing.assert_array_equal(values, np.arange(len(values)))
        assert (np.diff(first) > 0).all()
        assert sizes.min() >= min(12, volume.size)
        for value in values:
            assert ndimage.label(labels == value, np.ones((3, 3, 3)))[1] == 1


def test_a_larger_minimum_size_never_makes_more_segments():
    volume = np.random.default_rng(3).random((6, 30, 30)) * 255
    counts = [felzenszwalb(volume, min_size=size).max() + 1 for size in (1, 10, 100, 1000, 5400, 10**12)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == 1


def test_partitions_equal_separate_calls_on_many_tiny_volumes():
    random = np.random.default_rng(8)
    for index, volume in enumerate(volumes_of_every_kind(600, seed=9)):
        options = {
            "scale": float(random.choice([0, 1e-45, 1, 1, 30, 500, 10000])),
            "spacing": SPACINGS[random.integers(len(SPACINGS))],
        }
        # in any order, and some more than once
        sizes = [int(size) for size in random.choice([0, 1, 2, 3, 5, 8, 20, 50, 400, 10**12], random.integers(1, 8))]
        threads = int(random.integers(1, 4))
        made = list(partitions(volume, min_sizes=sizes, threads=threads, **options))
        assert len(made) == len(sizes)
        for size, labels in zip(sizes, made, strict=True):
            message = f"volume {index} of shape {volume.shape}, size {size} of {sizes}, threads {threads}, {options}"
            expected = felzenszwalb(volume, min_size=size, kernel="oracle", **options)
            np.testing.assert_array_equal(labels, expected, err_msg=message)


@pytest.mark.parametrize("levels", [4, 1000])
def test_partitions_equal_separate_calls_when_edges_come_in_many_stretches(levels):
    volume = np.floor(np.random.default_rng(levels).random((24, 40, 44)) * levels) * (255 / levels)
    sizes = (10, 40, 100, 300, 1000, 3000, 20000)
    for size, labels in zip(sizes, partitions(volume, min_sizes=sizes, spacing=(7.7, 1.25, 1.25)), strict=True):
        np.testing.assert_array_equal(labels, felzenszwalb(volume, min_size=size, spacing=(7.7, 1.25, 1.25)))


def test_partitions_are_nested_and_arrays_of_their_own():
    volume = np.random.default_rng(10).random((5, 20, 20)) * 255
    fine, coarse, again = partitions(volume, min_sizes=(5, 60, 5))
    pairs = np.unique(np.stack([fine.ravel(), coarse.ravel()]), axis=1)
    assert len(pairs[0]) == fine.max() + 1 > coarse.max() + 1 > 1
    fine[:] = -1
    assert again.min() == 0
    plane, _ = partitions(volume[0], min_sizes=(5, 60))
    assert plane.shape == (20, 20) and plane.dtype == np.int32


def test_seven_partitions_take_less_than_twice_the_processor_time_of_one():
    volume = np.round(ndimage.gaussian_filter(np.random.default_rng(11).standard_normal((24, 128, 128)), 1) * 300)
    sizes = (50, 100, 200, 400, 800, 1600, 3200)
    one = min(_processor_time(lambda: felzenszwalb(volume, min_size=50)) for _ in range(5))
    seven = min(_processor_time(lambda: list(partitions(volume, min_sizes=sizes))) for _ in range(5))
    assert seven < 2 * one


@pytest.mark.parametrize(("sizes", "message"), [((), "at least one"), ((5, -1), "min_size"), ((5, 2.5), "min_size")])
def test_bad_minimum_sizes_are_refused_before_the_first_partition(sizes, message):
    with pytest.raises(ValueError, match=message):
        partitions(np.zeros((4, 4)), min_sizes=sizes)


def test_time_grows_linearly_on_a_convex_ramp():
    # the published union-find goes quadratic here; 16 times the voxels may cost up to 48 times the processor time
    def seconds(depth):
        ramp = (np.arange(depth * 64 * 64, dtype=float)[::-1] ** 2).reshape(depth, 64, 64)
        ramp *= 255 / ramp.max()
        return min(_processor_time(lambda: felzenszwalb(ramp, min_size=1000)) for _ in range(3))

    assert seconds(64) < 48 * max(seconds(4), 1e-3)


def test_read_only_strided_integer_and_two_dimensional_images_give_the_labels_of_the_plain_array():
    volume = np.random.default_rng(4).integers(0, 50, (5, 12, 14))
    expected = felzenszwalb(volume.astype(float), min_size=9)
    frozen = volume.astype(float)
    frozen.flags.writeable = False
    for same in (
        frozen,
        volume,
        volume.astype(np.int16),
        volume.astype(np.float32),
        np.asfortranarray(volume),
        np.repeat(volume, 2, axis=2)[:, :, ::2],
        volume.tolist(),
    ):
        np.testing.assert_array_equal(felzenszwalb(same, min_size=9), expected)
    plane = felzenszwalb(volume[0], min_size=9)
    assert plane.shape == (12, 14) and plane.dtype == np.int32
    np.testing.assert_array_equal(plane, felzenszwalb(volume[:1], min_size=9)[0])


def test_the_image_is_left_as_it_was():
    volume = np.random.default_rng(5).random((3, 8, 8)) * 255
    kept = volume.copy()
    supervoxels(volume, min_size=20, spacing=(1, 1, 1), sigma=1)
    np.testing.assert_array_equal(volume, kept)


@pytest.mark.parametrize(
    ("image", "options", "message"),
    [
        (np.zeros(5), {}, "its shape is"),
        (np.zeros((2, 2, 2, 2)), {}, "its shape is"),
        (np.zeros((0, 4, 4)), {}, "empty"),
        (np.zeros((4, 4), complex), {}, "real numbers"),
        (np.array([["a", "b"]]), {}, "real numbers"),
        (np.array([[0.0, np.nan]]), {}, "NaN"),
        (np.array([[0.0, np.inf]]), {}, "NaN or infinite"),
        (np.array([[0.0, 1e200]]), {}, "squared"),
        (np.broadcast_to(np.uint8(0), (2048, 1024, 1024)), {}, "too many voxels"),
        (np.broadcast_to(np.uint8(0), (330, 1024, 1024)), {"kernel": "oracle"}, "too many voxels"),
        (np.zeros((4, 4)), {"spacing": (1, 0, 1)}, "spacing"),
        (np.zeros((4, 4)), {"spacing": (1, 1)}, "spacing"),
        (np.zeros((4, 4)), {"spacing": (1, float("nan"), 1)}, "spacing"),
        (np.zeros((4, 4)), {"spacing": (1e9, 1, 1)}, "million"),
        (np.zeros((4, 4)), {"min_size": -1}, "min_size"),
        (np.zeros((4, 4)), {"min_size": 2.5}, "min_size"),
        (np.zeros((4, 4)), {"scale": -1}, "scale"),
        (np.zeros((4, 4)), {"scale": float("inf")}, "scale"),
        (np.zeros((4, 4)), {"sigma": -0.5}, "sigma"),
        (np.zeros((4, 4)), {"threads": 0}, "threads"),
        (np.zeros((4, 4)), {"order": "random"}, "order"),
        (np.zeros((4, 4)), {"kernel": "slow"}, "kernel"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(image, options, message):
    with pytest.raises(ValueError, match=message):
        felzenszwalb(image, **options)


def test_rescale_takes_integers_in_double_and_floats_in_their_own_precision():
    values = np.array([[-30000, 7, 30000]], dtype=np.int16)
    np.testing.assert_array_equal(rescale(values), (255 * (values.astype(float) + 30000)) / 60000)
    single = np.array([[0.1, 0.7, 3.3]], dtype=np.float32)
    np.testing.assert_array_equal(rescale(single), (255 * (single - single.min())) / (single.max() - single.min()))
    assert rescale(single).dtype == np.float64


def test_a_constant_scan_has_no_supervoxels():
    np.testing.assert_array_equal(rescale(np.full((2, 3, 3), 7)), np.zeros((2, 3, 3)))
    assert not supervoxels(np.full((2, 3, 3), 7), min_size=5, spacing=(1, 1, 1)).any()


def test_the_mask_equals_plain_scipy_on_random_images():
    random = np.random.default_rng(6)
    for _ in range(60):
        image = ndimage.uniform_filter(random.random((3, 24, 20)), (0, 3, 3)) * 20
        np.testing.assert_array_equal(foreground_mask(image), np.stack([_plain_mask(plane > 10) for plane in image]))


def _plain_mask(above):
    labels, count = ndimage.label(above, np.ones((3, 3)))
    if count == 0:
        return above
    return ndimage.binary_fill_holes(labels == 1 + np.argmax(np.bincount(labels.ravel())[1:]))


def _processor_time(work):
    begin = time.process_time()
    work()
    return time.process_time() - begin


def _scan(chaost2, number):
    volume = read_volume(chaost2 / f"chaos_MR_T2_normalized/image_{number}.nii.gz")
    x, y, z = volume.geometry.spacing
    return rescale(volume.array), (z, x, y)


@pytest.mark.parametrize(("thick", "wide"), [(7.7, 1.25), (3.0, 1.5), (9.0, 2.0), (1.0, 1.0)])
def test_weights_of_edges_are_squares_of_quotients_to_the_last_bit(thick, wide):
    """`(1 + s * s) / 2` rounds otherwise, and decides ties otherwise than the published supervoxels."""
    s = thick / wide
    side, corner = np.sqrt(1 + s * s) / np.sqrt(2), np.sqrt(2 + s * s) / np.sqrt(3)
    expected = {0: {1: 1.0, 2: 1.0}, 1: {1: s * s, 2: side * side, 3: corner * corner}}
    found = edge_weights((thick, wide, wide))
    assert found == [expected[abs(offset[0])][np.count_nonzero(offset)] for offset in OFFSETS]
