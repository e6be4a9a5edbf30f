"""Episode k is a pure function of (seed, k)."""

import os
import signal
from collections import Counter

import numpy as np
import pytest
import torch

from dataloaders.augmentation import SLICES, Change, Gamma, Warp, apply_changes, draw_changes
from dataloaders.episodes import TrainingEpisodes, episode_loader, lost_workers
from dataloaders.samplers import NeighboursSampler
from dataloaders.scans import Scan
from tests.options import EPISODE
from util.errors import UserError
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
    sampler = NeighboursSampler([scan.areas for scan in scans], min_size=50)
    return TrainingEpisodes(scans, sampler, EPISODE, seed=7)


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


def test_workers_need_no_shared_memory(episodes):
    """Containers have 64 MB of it or less; a worker that gets none would send nothing and say nothing."""
    (batch,) = episode_loader(episodes, first=0, last=1, workers=1)
    assert not batch.support_images.is_shared() and not batch.query_masks.is_shared()


class Killed(TrainingEpisodes):
    """Episodes whose fourth costs the process that cuts it its life."""

    def __getitem__(self, number: int):
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(number)


def test_a_worker_that_is_killed_ends_the_training(episodes):
    deadly = Killed(episodes.scans, episodes.sampler, EPISODE, seed=7)
    with pytest.raises(UserError, match=r"has ended \(DataLoader worker.* resume= .*workers=0"), lost_workers():
        list(episode_loader(deadly, first=0, last=9, workers=1))


def test_ranks_share_the_episodes(episodes):
    of_rank = [list(episode_loader(episodes, first=0, last=2, rank=rank, ranks=2)) for rank in (0, 1)]
    for number, batch in enumerate(of_rank[step % 2][step // 2] for step in range(4)):
        assert same(batch, episodes[number])


def test_other_seeds_and_numbers_differ(episodes):
    other = TrainingEpisodes(episodes.scans, episodes.sampler, EPISODE, seed=8)
    assert not same(episodes[0], other[0]) and not same(episodes[0], episodes[1])


def test_exactly_one_side_gets_each_change(episodes):
    generator = np.random.default_rng(0)
    options = EPISODE | dict(bias_field=0.3, noise=0.1)
    on_query = Counter()
    for _ in range(400):
        support, query = draw_changes(generator, episodes.scans[0], options, SLICES["one"])
        assert sorted(type(change).__name__ for change in (*support, *query)) == ["BiasField", "Gamma", "Noise", "Warp"]
        on_query.update(type(change) for change in query)
    assert len(on_query) == 4 and all(150 < count < 250 for count in on_query.values())


def test_both_sides_get_changes_of_their_own(episodes):
    views = draw_changes(np.random.default_rng(0), episodes.scans[0], EPISODE | dict(augment="both"), SLICES["both"], 2)
    assert [[type(change) for change in changes] for changes in views] == [[Warp, Gamma]] * 3
    assert len({changes[1].exponent for changes in views}) == 3


def test_draws_stay_in_their_ranges(episodes):
    options = EPISODE | dict(gamma=(0.8, 0.9), rotation=2, shift=3, shear=1, zoom=(1.1, 1.2), elastic=0)
    generator = np.random.default_rng(0)
    for _ in range(200):
        support, query = draw_changes(generator, episodes.scans[0], options, SLICES["one"])
        gamma, warp = sorted((*support, *query), key=lambda change: isinstance(change, Warp))
        assert 0.8 <= gamma.exponent <= 0.9 and 1.1 <= warp.zoom <= 1.2 and abs(warp.rotation) <= 2
        assert max(map(abs, warp.shift)) <= 3 and abs(warp.shear) <= 1 and warp.noise is None


@pytest.mark.parametrize(("key", "size"), [("bias_field", 0.4), ("noise", 0.2)])
def test_changes_of_intensity_leave_the_mask_and_grow_with_their_key(episodes, key, size):
    scan = episodes.scans[0]
    mask, spread = (scan.segments[3] == 1).astype(np.float32), []
    (kind,) = [kind for kind in SLICES["one"] if kind.draw(np.random.default_rng(1), scan, EPISODE) is None
               and kind.draw(np.random.default_rng(1), scan, EPISODE | {key: 1.0}) is not None]  # fmt: skip
    for factor in (1, 2):
        change = kind.draw(np.random.default_rng(1), scan, EPISODE | {key: factor * size})
        image, after = apply_changes([change], scan.image[3], mask)
        assert np.array_equal(after, mask) and image.dtype == np.float32
        spread.append(np.abs(image - scan.image[3]).mean())
    assert 0 < spread[0] < spread[1]


def test_a_new_change_is_one_class_and_one_key(episodes, monkeypatch):
    """As the pages promise: written here, it takes part in every episode."""

    class Inverted(Change):
        @classmethod
        def draw(cls, generator, scan, options):
            return cls() if options["inverted"] else None

        def image(self, image, extremes):
            return extremes[0] + extremes[1] - image

    monkeypatch.setitem(SLICES, "one", (Inverted,))
    scan = episodes.scans[0]
    made = TrainingEpisodes([scan], NeighboursSampler([scan.areas], min_size=50), EPISODE | {"inverted": True}, 7)
    episode = made[0]
    images = (episode.support_images[0, 0, 0].numpy(), episode.query_images[0, 0, 0].numpy())
    known = [any(np.array_equal(image, piece) for piece in scan.image) for image in images]
    assert sorted(known) == [False, True]


def test_gamma_keeps_the_extremes():
    image = np.array([[-1.0, 0.0], [2.0, 3.0]], np.float32)
    changed = Gamma(1.4).image(image, (-1.0, 3.0))
    assert changed[1, 1] == pytest.approx(3, abs=1e-4) and changed[0, 0] == pytest.approx(-1, abs=1e-4)
    assert changed[0, 1] < image[0, 1]
