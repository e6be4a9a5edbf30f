"""Episode k is a pure function of (seed, k)."""

import numpy as np
import pytest
import torch

from dataloaders.augmentation import Ranges, draw_for_one
from dataloaders.episodes import TrainingEpisodes, episode_loader
from dataloaders.samplers import NeighboursSampler
from dataloaders.scans import Scan
from util.volume import Geometry


@pytest.fixture(scope="module")
def episodes() -> TrainingEpisodes:
    generator = np.random.default_rng(0)
    scans = []
    for number in range(3):
        segments = np.zeros((6, 40, 40), dtype=np.int32)
        segments[:, 5:20, 5:20], segments[2:, 22:35, 8:30] = 1, 2
        image = (segments + 0.3 * generator.standard_normal(segments.shape)).astype(np.float32)
        scans.append(Scan(number, image, None, segments, Geometry(), segments.shape))
    sampler = NeighboursSampler([scan.segments for scan in scans], min_size=50)
    return TrainingEpisodes(scans, sampler, Ranges(), seed=7)


def same(one, other) -> bool:
    names = ("support_images", "support_masks", "query_images", "query_masks")
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in names)


def test_shapes_and_values(episodes):
    for number in range(20):
        episode = episodes[number]
        assert episode.support_images.shape == episode.query_images.shape == (1, 1, 1, 40, 40)
        assert set(episode.support_masks.unique().tolist()) <= {0.0, 1.0}
        assert episode.query_masks.dtype == torch.uint8
        assert episode.support_masks.any() or episode.query_masks.any()


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("first", [0, 5])
def test_any_number_of_workers_and_any_start_give_the_same(episodes, workers, first):
    torch.manual_seed(workers)  # the global state must not matter
    loaded = list(episode_loader(episodes, first=first, last=first + 4, batch_size=2, workers=workers))
    assert len(loaded) == 4
    for step, batch in enumerate(loaded, start=first):
        expected = type(batch).stack([episodes[2 * step], episodes[2 * step + 1]])
        assert same(batch, expected)


def test_loading_does_not_touch_the_global_random_state(episodes):
    before = torch.get_rng_state()
    list(episode_loader(episodes, first=0, last=2))
    assert torch.equal(before, torch.get_rng_state())


def test_ranks_share_the_episodes(episodes):
    of_rank = [list(episode_loader(episodes, first=0, last=2, rank=rank, ranks=2)) for rank in (0, 1)]
    for number, batch in enumerate(of_rank[step % 2][step // 2] for step in range(4)):
        assert same(batch, episodes[number])


def test_other_seeds_and_numbers_differ(episodes):
    other = TrainingEpisodes(episodes.scans, episodes.sampler, episodes.ranges, seed=8)
    assert not same(episodes[0], other[0]) and not same(episodes[0], episodes[1])


def test_exactly_one_side_gets_each_change():
    generator = np.random.default_rng(0)
    sides = {"gamma": 0, "warp": 0}
    for _ in range(400):
        support, query = draw_for_one(generator, (8, 8), Ranges())
        for name in sides:
            assert (getattr(support, name) is None) != (getattr(query, name) is None)
            sides[name] += getattr(query, name) is not None
    assert all(150 < count < 250 for count in sides.values())


def test_draws_stay_in_their_ranges():
    ranges = Ranges(gamma=(0.8, 0.9), rotation=2, shift=3, shear=1, zoom=(1.1, 1.2), elastic=0)
    generator = np.random.default_rng(0)
    for _ in range(200):
        changes = draw_for_one(generator, (8, 8), ranges)
        gamma = next(c.gamma for c in changes if c.gamma is not None)
        warp = next(c.warp for c in changes if c.warp is not None)
        assert 0.8 <= gamma <= 0.9 and 1.1 <= warp.zoom <= 1.2 and abs(warp.rotation) <= 2
        assert max(map(abs, warp.shift)) <= 3 and abs(warp.shear) <= 1 and warp.noise is None
