"""Changes made to a batch on its device are those made by the loader's processes, from the same draws."""

import csv

import numpy as np
import pytest
import torch

from dataloaders.augmentation import SLICES
from dataloaders.device_augmentation import Unchanged
from dataloaders.episodes import TrainingEpisodes, episode_loader
from dataloaders.samplers import NeighbouringSampler, NeighboursSampler
from dataloaders.scans import Scan
from tests.commands import only_run, refused, train
from tests.models.test_devices import NoWaiting
from tests.options import EPISODE
from util.episode import Episode
from util.volume import Geometry

STRONG = {**EPISODE, "bias_field": 0.3, "noise": 0.1, "shift": 12.0, "rotation": 20.0, "shear": 10.0, "elastic": 40.0}


def scans() -> list[Scan]:
    generator = np.random.default_rng(0)
    segments = np.zeros((6, 48, 40), dtype=np.int32)
    segments[:, 5:20, 0:20], segments[2:, 22:35, 8:40] = 1, 2  # at the border, which the two paths must treat alike
    images = [segments + 0.3 * generator.standard_normal(segments.shape) for _ in range(3)]
    return [
        Scan(number, image.astype(np.float32), None, segments, Geometry(), segments.shape)
        for number, image in enumerate(images)
    ]


def made(options: dict, **changed) -> TrainingEpisodes:
    known = scans()
    return TrainingEpisodes(known, NeighboursSampler([s.areas for s in known], min_size=50), {**options, **changed}, 7)


@pytest.mark.parametrize("augment", SLICES)
@pytest.mark.parametrize("options", [EPISODE, STRONG, {**EPISODE, "elastic": 0.0}], ids=["usual", "strong", "stiff"])
def test_images_and_masks_are_those_of_the_loader(augment, options):
    ours, theirs = (made(options, augment=augment, on_device=on) for on in (True, False))
    expected = Episode.stack([theirs[number] for number in range(40)])
    found = Unchanged.stack([ours[number] for number in range(40)]).to("cpu")
    for name in ("support_images", "query_images"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=0, atol=5e-4)
    for name in ("support_masks", "query_masks"):
        one, other = getattr(found, name), getattr(expected, name)
        assert one.dtype == other.dtype and set(one.unique().tolist()) == {0, 1}
        assert (one != other).float().mean() < 1e-4  # where an interpolated mask is 0.5 but for rounding


def test_nothing_stays_on_the_host_and_nothing_waits():
    given = Unchanged.stack([made(STRONG, noise=0.0, on_device=True)[number] for number in range(4)])
    assert all(value.device.type == "meta" for value in vars(given.to("meta")).values())
    with NoWaiting():
        given.to("cpu")


@pytest.mark.parametrize("workers", [0, 2])
def test_the_loader_hands_over_what_it_drew(workers):
    episodes = made(EPISODE, on_device=True)
    for step, batch in enumerate(episode_loader(episodes, first=3, last=6, batch_size=2, workers=workers), start=3):
        expected = Unchanged.stack([episodes[2 * step], episodes[2 * step + 1]]).to("cpu")
        found = batch.to("cpu")
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in vars(expected))


def test_what_is_carried_from_slice_to_slice_is_not_changed():
    known = scans()
    sampler = NeighbouringSampler([scan.areas for scan in known], min_size=50, realistic=1.0, reach=2, queries="all")
    ours, theirs = (TrainingEpisodes(known, sampler, {**EPISODE, "on_device": on}, 7) for on in (True, False))
    for number in range(5):
        found, expected = ours[number].to("cpu"), theirs[number]
        assert all(torch.equal(getattr(found, name), getattr(expected, name)) for name in vars(expected))


def test_a_training_is_the_same(tiny, tmp_path):
    for on in (False, True):
        common = [f"data_root={tiny}", f"runs={tmp_path / str(on)}", "train.batch_size=2", "log=tensorboard"]
        train(*common, f"episode.on_device={on}")
    rows = [list(csv.DictReader((only_run(tmp_path / str(on)) / "metrics.csv").open())) for on in (False, True)]
    for name in ("loss", "query", "align", "t", "predicted", "gradient_norm"):  # a pixel of a mask may differ
        assert float(rows[0][-1][name]) == pytest.approx(float(rows[1][-1][name]), rel=5e-3)


def test_volumes_are_refused(tiny, tmp_path, capsys):
    crops = [f"data_root={tiny}", f"runs={tmp_path}", "method=adnet3d", "encoder=resnext14_3d", "weights=none"]
    assert "episode.on_device: changes slices" in refused(capsys, train, *crops, "episode.on_device=True")
