"""Volumes in patches are what they are whole, wherever the patches let the encoder see enough."""

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from models.adnet3d import ADNet3D
from models.parts import encoders
from models.parts.resnext3d import ResNeXt3D
from tests.models.stub import TinyEncoder
from util.errors import UserError
from util.evaluation.metrics import overlap
from util.evaluation.tasks import Group, Task
from util.evaluation.volumes import VolumeInference, encode_patches
from util.memory import counted_bytes, forward_bytes

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Ball:
    """A bright ball in noise."""

    image: np.ndarray
    mask: np.ndarray

    def organ(self, identifier: int) -> np.ndarray:
        return self.mask & (identifier == 1)


def ball(depth: int, side: int = 96, seed: int = 0) -> Ball:
    z, y, x = np.indices((depth, side, side))
    mask = ((z - depth / 2) / (depth / 3)) ** 2 + ((y - side / 2) ** 2 + (x - side / 2) ** 2) / (side / 4) ** 2 <= 1
    noise = np.random.default_rng(seed).standard_normal(mask.shape)
    return Ball((2 * mask + 0.3 * noise).astype(np.float32), mask)


def segmenter(scans: dict[int, Ball], **options) -> VolumeInference:
    torch.manual_seed(0)
    method = ADNet3D(TinyEncoder((8,), 3), channels=6).eval()
    return VolumeInference(method, scans.__getitem__, CPU, **options)


def task(scans: dict[int, Ball], *groups: Group, support: int = 0, query: int = 1) -> Task:
    if not groups:
        shown = np.flatnonzero(scans[support].mask.any((1, 2)))
        slices = tuple((support, int(z)) for z in shown)
        groups = (Group(slices, tuple(range(len(scans[query].image)))),)
    return Task("ball", 1, (support,), query, groups, ())


# --------------------------------------------------------------------------------------------------------- patches


@pytest.fixture(scope="module")
def small_resnext() -> ADNet3D:
    """One block per stage: a cell sees 7 slices and 29 pixels to every side, so there are patches that cover it."""
    torch.manual_seed(0)
    return ADNet3D(ResNeXt3D((8,), (1, 1, 1, 1))).eval()


def covered(shape, patch, blend) -> torch.Tensor:
    """Cells that no patch holding them sees through its cut border: 7 slices, 29 pixels (4 cells) away from all."""
    cells = (shape[0], shape[1] // 8, shape[2] // 8)
    size, reach = (patch[0], patch[1] // 8, patch[2] // 8), (7, 4, 4)
    fine = torch.ones(cells, dtype=torch.bool)
    for axis in range(3):
        step = max(size[axis] // 2, 1) if blend else size[axis]
        last = cells[axis] - size[axis]
        along = torch.ones(cells[axis], dtype=torch.bool)
        for start in [*range(0, last, step), last]:
            end = start + size[axis]
            if start > 0:
                along[start : start + reach[axis]] = False
            if end < cells[axis]:
                along[end - reach[axis] : end] = False
        fine &= along.reshape([-1 if a == axis else 1 for a in range(3)])
    return fine


@pytest.mark.parametrize(
    ("patch", "blend"),
    [((24, 96, 96), False), ((16, 96, 96), False), ((40, 64, 96), False), ((20, 96, 96), True), ((40, 96, 64), True)],
)
def test_features_of_patches_are_those_of_the_volume_where_the_view_is_whole(small_resnext, patch, blend):
    image = torch.from_numpy(ball(40).image)
    with torch.inference_mode():
        (whole,) = small_resnext.encode(image[None, None])
        (pieces,) = encode_patches(small_resnext, image, CPU, patch, blend)
    difference = (pieces - whole[0]).abs().amax(0) / whole.abs().max()
    fine = covered(image.shape, patch, blend)
    assert fine.any() and not fine.all()
    assert difference[fine].max() < 1e-5 < difference[~fine].max()


def test_patches_that_overlap_by_twice_the_view_change_nothing():
    """A 2D encoder's mixers see two slices to both sides: patches of eight, overlapping by four, are exact."""
    torch.manual_seed(0)
    encoder = encoders.build("efficientnet_lite0", (8,), None, 3)
    torch.nn.init.normal_(encoder.mixers[0].add.weight, std=0.1)
    method = ADNet3D(encoder, channels=112).eval()
    image = torch.from_numpy(ball(21, side=64).image)
    with torch.inference_mode():
        (whole,) = method.encode(image[None, None])
        for depth, exact in ((8, True), (13, True), (4, False)):
            (pieces,) = encode_patches(method, image, CPU, (depth, 64, 64))
            difference = (pieces - whole[0]).abs().max() / whole.abs().max()
            assert (difference < 1e-5) == exact, depth


@pytest.mark.parametrize("blend", [True, False])
@pytest.mark.parametrize("shape", [(5, 64, 64), (11, 50, 70), (1, 33, 64), (13, 65, 41)])
def test_any_shape_in_any_patches(shape, blend):
    """Fewer slices than a patch, one slice, odd sides: an encoder that looks at single pixels gives the same."""

    class Subsampled(torch.nn.Module):
        strides = (4, 8)

    method = torch.nn.Module()
    method.encoder = Subsampled()
    method.encode = lambda images: (images[..., ::4, ::4], images[..., ::8, ::8])
    image = torch.randn(shape)
    for patch in ((4, 32, 32), (2, 16, 24), (1, 8, 8), (30, 200, 17)):
        for found, step in zip(encode_patches(method, image, CPU, patch, blend), (4, 8), strict=True):
            torch.testing.assert_close(found, image[None, :, ::step, ::step], rtol=1e-5, atol=1e-6)


def test_predictions_in_patches_are_close_to_the_whole():
    """Where patches are smaller than the encoder's view (ImageNet features, slice by slice) Dice differs by < 0.01."""
    scans = {0: ball(7, side=128), 1: ball(6, side=128, seed=1)}
    truth = scans[1].mask
    torch.manual_seed(0)
    method = ADNet3D(encoders.build("efficientnet_lite0", (8,), "imagenet", 3), channels=112).eval()

    def predicted(**options) -> np.ndarray:
        return VolumeInference(method, scans.__getitem__, CPU, **options).probabilities(task(scans))

    whole = predicted()
    cut = np.quantile(whole, 1 - truth.mean())
    dice = overlap(whole > cut, truth)[0]
    assert dice > 0.8
    for patch in ((0, 96, 96), (4, 96, 0)):
        pieces = predicted(patch=patch)
        assert np.abs(pieces - whole).max() > 1e-3
        assert overlap(pieces > cut, truth)[0] == pytest.approx(dice, abs=0.01)


def test_a_bound_on_memory_makes_patches(caplog):
    scans = {0: ball(24), 1: ball(20)}
    shape = scans[0].image.shape
    free = segmenter(scans)
    needed = free._gib(shape)
    assert free.patch_of(shape) == shape
    for share in (1.01, 0.6, 0.3, 0.1):
        bounded = segmenter(scans, memory_gb=share * needed)
        patch = bounded.patch_of(shape)
        assert bounded._gib(patch) <= share * needed and (patch == shape) == (share > 1)
        assert all(side % 8 == 0 for side in patch[1:])
    with pytest.raises(UserError, match="allow as much"):
        segmenter(scans, memory_gb=1e-6).patch_of(shape)


@pytest.mark.parametrize("patch", [(1, 2), (-1, 0, 0)])
def test_a_patch_is_three_numbers(patch):
    with pytest.raises(UserError, match=r"test\.patch"):
        segmenter({}, patch=patch)


# ----------------------------------------------------------------------------------------------------------- tasks


def test_the_whole_query_is_segmented_from_every_annotated_slice():
    scans = {0: ball(12), 1: ball(9, seed=1)}
    inference = segmenter(scans)
    found = inference.probabilities(task(scans))
    method = inference.method
    images = [torch.from_numpy(scans[k].image)[None, None, None] for k in (0, 1)]
    with torch.inference_mode():
        features = [[maps[None] for maps in method.encode(image.flatten(0, 1))] for image in images]
        mask = torch.from_numpy(scans[0].mask)[None, None].float()
        expected = method.match(features[0], mask, features[1]).probabilities[0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_groups_keep_their_own_slices_and_see_their_own_annotation():
    scans = {0: ball(12), 1: ball(9, seed=1)}
    low, high = Group(((0, 5),), (0, 1, 2)), Group(((0, 7), (0, 8)), (5, 6))
    both = segmenter(scans).probabilities(task(scans, low, high))
    assert not both[[3, 4, 7, 8]].any() and both[[0, 1, 2, 5, 6]].any((1, 2)).all()
    everywhere = Group(((0, 7), (0, 8)), tuple(range(9)))
    np.testing.assert_array_equal(both[[5, 6]], segmenter(scans).probabilities(task(scans, everywhere))[[5, 6]])


def test_two_support_scans_of_different_depth_are_two_shots():
    """The prototype is the mean of theirs, in any order."""
    scans = {0: ball(12), 1: ball(9, seed=1), 2: ball(7, seed=2)}
    alone = [segmenter(scans).probabilities(task(scans, support=support)) for support in (0, 2)]
    slices = [tuple((k, int(z)) for z in np.flatnonzero(scans[k].mask.any((1, 2)))) for k in (0, 2)]
    both = [
        segmenter(scans).probabilities(Task("ball", 1, (0, 2), 1, (Group(one + other, tuple(range(9))),), ()))
        for one, other in itertools.permutations(slices)
    ]
    np.testing.assert_allclose(both[0], both[1], rtol=1e-5, atol=1e-6)
    assert not np.allclose(both[0], alone[0], atol=1e-4) and not np.allclose(both[0], alone[1], atol=1e-4)


@pytest.mark.parametrize("depth", [1, 2, 30])
def test_any_depth(depth):
    scans = {0: ball(12), 1: ball(depth, seed=1)}
    assert segmenter(scans).probabilities(task(scans)).shape == (depth, 96, 96)


def test_a_scan_is_encoded_once_and_forgotten_when_told():
    scans, read = {0: ball(12), 1: ball(9)}, []
    inference = segmenter(scans)
    inference.read_scan = lambda number: read.append(number) or scans[number]
    for _ in range(2):
        inference.probabilities(task(scans))
    assert sorted(read) == [0, 1]
    inference.keep(frozenset([0]))
    inference.probabilities(task(scans))
    assert sorted(read) == [0, 1, 1]


def test_walks_from_slice_to_slice_are_refused():
    scans = {0: ball(12), 1: ball(9)}
    with pytest.raises(UserError, match="whole volumes"):
        segmenter(scans).probabilities(task(scans, Group(((0, 5),), tuple(range(9)), pivot=4)))


# ---------------------------------------------------------------------------------------------------------- memory


def test_counted_bytes_are_those_of_the_tensors_that_live_together():
    def compute():
        a = torch.zeros(1000)  # 4000 bytes
        b = a + 1  # 8000
        a = None
        c = b * 2  # 8000 again: a is gone
        return c.view(10, 100)  # no new storage

    assert counted_bytes(compute) == 8000


def test_forward_bytes_count_without_computing():
    """A chain of convolutions holds an input and an output at once; 1 TB of it is counted in no time."""
    network = torch.nn.Sequential(*(torch.nn.Conv3d(1, 1, 3, padding=1) for _ in range(3)))
    side = 4000
    assert forward_bytes(network, (1, 1, side, side, side)) == pytest.approx(2 * 4 * side**3, rel=0.01)
