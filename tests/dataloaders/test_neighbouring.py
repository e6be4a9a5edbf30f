"""Tasks between neighbouring slices: who is asked, and how a superpixel gets there."""

import numpy as np
import pytest
import torch

from dataloaders.episodes import TrainingEpisodes
from dataloaders.flows import Carrier, flows_folder, flows_of, offsets, read_flows, write_flows
from dataloaders.samplers import NeighbouringSampler, neighbours
from dataloaders.scans import Scan
from models.parts.encoders import Images
from models.registration import Registration, warp
from tests.options import EPISODE
from util.errors import UserError
from util.mapped import MappedArray
from util.volume import Geometry

DEPTH, SIDE = 9, 40


def scan(number: int = 0) -> Scan:
    generator = np.random.default_rng(number)
    segments = np.zeros((DEPTH, SIDE, SIDE), dtype=np.int32)
    segments[1:, 5:20, 8:20], segments[1:, 22:30, 8:30] = 1, 2
    image = generator.standard_normal(segments.shape).astype(np.float32)
    return Scan(number, image, None, segments, Geometry(), segments.shape)


def draws(sampler, count: int = 300):
    generator = np.random.default_rng(1)
    return [sampler.draw(generator) for _ in range(count)]


def shifting(rows: float, columns: float):
    """A registration that finds every slice moved by so much from the one before, whatever the direction."""

    def register(source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return np.stack((np.full(source.shape, rows), np.full(source.shape, columns)), 1)

    return register


def test_all_queries_are_the_neighbours_in_order():
    choices = draws(NeighbouringSampler([scan().areas], realistic=1.0, reach=2, queries="all"))
    assert {z for c in choices for z in [c.support_slice]} == set(range(2, DEPTH - 2))
    for choice in choices:
        z = choice.support_slice
        assert choice.query_slices == (z - 2, z - 1, z + 1, z + 2) and choice.carried


def test_one_query_is_any_neighbour_within_reach_and_within_the_scan():
    choices = draws(NeighbouringSampler([scan().areas], realistic=1.0, reach=3), 2000)
    distances = [c.query_slices[0] - c.support_slice for c in choices]
    assert set(distances) == {-3, -2, -1, 1, 2, 3}
    assert all(0 <= c.query_slices[0] < DEPTH for c in choices)
    assert {c.support_slice for c in choices} == set(range(1, DEPTH))


def test_the_share_of_realistic_tasks():
    choices = draws(NeighbouringSampler([scan().areas], realistic=0.25), 2000)
    assert np.mean([c.carried for c in choices]) == pytest.approx(0.25, abs=0.03)
    assert all(c.query_slices == (c.support_slice,) for c in choices if not c.carried)


@pytest.mark.parametrize(("queries", "reach"), [("one", 3), ("all", 1)])
def test_removed_slices_are_neither_asked_nor_crossed(queries, reach):
    removed = np.zeros(DEPTH, bool)
    removed[4] = True
    sampler = NeighbouringSampler([scan().areas], excluded=[removed], realistic=1.0, reach=reach, queries=queries)
    for choice in draws(sampler):
        for query in choice.query_slices:
            between = range(min(query, choice.support_slice), max(query, choice.support_slice) + 1)
            assert 4 not in between
    assert neighbours(~removed, 3, 3) == [0, 1, 2] and neighbours(~removed, 5, 2) == [6, 7]


def test_no_slice_with_its_neighbours():
    with pytest.raises(UserError, match=r"episode\.reach=5"):
        NeighbouringSampler([scan().areas], realistic=1.0, reach=5, queries="all")


@pytest.mark.parametrize(("way", "reach"), [("chained", 1), ("direct", 3)])
def test_a_superpixel_moves_with_the_flow(way, reach):
    """Two rows and one column per slice; registered directly, the same in one go."""
    table = flows_of(scan().image, reach, shifting(-2, 1))
    mask = (scan().segments[3] == 1).astype(np.float32)
    for target in (2, 4, 5, 6):
        steps = abs(target - 3) if way == "chained" else 1
        carried = Carrier([table], way).carry(0, mask, 3, target)
        np.testing.assert_array_equal(carried, np.roll(mask, (2 * steps, -steps), (0, 1)))


def test_a_mask_stays_soft_until_it_arrives():
    """Three times a third of a pixel is one pixel; binarised on the way it would never have moved."""
    table = flows_of(scan().image, 1, shifting(0, -1 / 3))
    mask = (scan().segments[3] == 1).astype(np.float32)
    np.testing.assert_array_equal(Carrier([table]).carry(0, mask, 3, 6), np.roll(mask, 1, 1))
    np.testing.assert_array_equal(Carrier([table]).carry(0, mask, 3, 4), mask)


def test_a_pixel_that_is_half_covered_belongs_to_what_was_carried():
    table = np.zeros((2, 2, 2, 1, 4), np.float16)
    table[1, 0, 1] = 0.5  # columns, from slice 0 to slice 1
    carried = Carrier([table]).carry(0, np.array([[0, 1, 1, 0]], np.float32), 0, 1)
    assert carried.tolist() == [[1, 1, 1, 0]]


def test_the_loader_samples_as_the_network_does():
    """Sampled at true pixels, the displacement of either grid is the network's own warp: tables need no convention."""
    generator = torch.Generator().manual_seed(0)
    source, target = torch.randn(2, 1, 1, 32, 48, generator=generator)
    mask = torch.zeros(1, 1, 32, 48)
    mask[..., 8:20, 10:30] = 1
    for align_corners in (True, False):
        torch.manual_seed(1)
        network = Registration(Images(), align_corners=align_corners)
        with torch.no_grad():
            network.disp_layer.weight.mul_(20)
            expected = warp(mask, network.flow(source, target), align_corners)
            true = network.displacement(source, target)
        np.testing.assert_allclose(warp(mask, true), expected, atol=1e-4)


def test_tables_are_made_once_and_read_from_files(tmp_path):
    scans, checkpoint = [scan(4), scan(7)], tmp_path / "checkpoints/step_000009.pt"
    folder = flows_folder(checkpoint, 2)
    write_flows(folder, scans[:1], 2, shifting(1, 0))

    def refuse(source, target):
        raise AssertionError("made again")

    write_flows(folder, scans[:1], 2, refuse)
    (table,) = read_flows(checkpoint, scans[:1], 1)  # what reaches farther will do
    assert isinstance(table, MappedArray) and table.shape == (4, DEPTH, 2, SIDE, SIDE)
    np.testing.assert_array_equal(table, flows_of(scan(4).image, 2, shifting(1, 0)))
    assert not table[offsets(2).index(1), -1].any()  # no slice behind the last
    mask = (scan(4).segments[3] == 1).astype(np.float32)
    near = Carrier([flows_of(scan(4).image, 1, shifting(1, 0))])
    np.testing.assert_array_equal(Carrier([table]).carry(0, mask, 3, 5), near.carry(0, mask, 3, 5))


def test_missing_and_damaged_tables_name_the_command_that_makes_them(tmp_path):
    scans, checkpoint = [scan(4), scan(7)], tmp_path / "checkpoints/step_000009.pt"
    command = f"python training.py flows with resume={checkpoint} episode.reach="
    with pytest.raises(UserError, match=f"no flows lie beside it; make it with: {command}2"):
        read_flows(checkpoint, scans, 2)
    write_flows(flows_folder(checkpoint, 1), scans[:1], 1, shifting(1, 0))
    with pytest.raises(UserError, match=f"its flows reach 1 slices, 2 are needed; make it with: {command}2"):
        read_flows(checkpoint, scans, 2)
    with pytest.raises(UserError, match=f"flows_7.npy: no such file; make it with: {command}1"):
        read_flows(checkpoint, scans, 1)
    file = flows_folder(checkpoint, 1) / "flows_4.npy"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match=f"flows_4.npy: damaged; delete it and make it with: {command}1"):
        read_flows(checkpoint, scans[:1], 1)


def episodes(carrier: Carrier | None, **options) -> TrainingEpisodes:
    scans = [scan()]
    sampler = NeighbouringSampler([s.areas for s in scans], reach=2, queries="all", **options)
    return TrainingEpisodes(scans, sampler, EPISODE | {"augment": "both"}, 3, carrier)


def test_episodes_of_neighbours_are_not_augmented_and_labelled_where_the_superpixel_went():
    carrier = Carrier([flows_of(scan().image, 1, shifting(0, 2))])
    choice = NeighbouringSampler([scan().areas], realistic=1.0, reach=2, queries="all").draw(
        np.random.default_rng((3, 5))
    )
    episode = episodes(carrier, realistic=1.0)[5]
    z = choice.support_slice
    np.testing.assert_array_equal(episode.support_images[0, 0, 0], scan().image[z])
    for q, (slice_, distance) in enumerate(zip(choice.query_slices, (2, 1, 1, 2), strict=True)):
        np.testing.assert_array_equal(episode.query_images[0, q, 0], scan().image[slice_])
        moved = np.roll(scan().segments[z] == choice.segment, -2 * distance, 1)
        np.testing.assert_array_equal(episode.query_masks[0, q], moved)
    assert episode.neighbours.tolist() == [1.0]


def test_without_flows_the_label_of_a_neighbour_is_unknown():
    assert (episodes(None, realistic=1.0)[0].query_masks == 255).all()


def test_synthetic_episodes_have_as_many_queries_each_changed_by_itself():
    episode = episodes(None, realistic=0.0)[0]
    assert episode.query_images.shape == (1, 4, 1, SIDE, SIDE) and episode.neighbours.tolist() == [0.0]
    assert len({image.numpy().tobytes() for image in (*episode.query_images[0], *episode.support_images[0])}) == 5


def test_the_published_loss_of_labels():
    given = episodes(None, realistic=0.0)
    given.lost_labels = True
    for number in range(10):
        episode = given[number]
        first = given.sampler.draw(np.random.default_rng((3, number))).segment == 1
        assert episode.support_masks.any() and bool(episode.query_masks.any()) == first
