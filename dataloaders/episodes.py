"""Training episodes: cut from scans, augmented, stacked. Episode k is a pure function of (seed, k)."""

import signal
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataloaders.augmentation import Ranges, draw_for_both, draw_for_one
from dataloaders.samplers import NeighboursSampler, SliceSampler
from dataloaders.scans import Scan
from util.episode import Episode


class TrainingEpisodes(Dataset):
    """Endless, numbered training episodes of one support and one query slice.

    Args:
        scans: the training scans, with segments.
        sampler: chooses scan, segment and slices.
        ranges: of the augmentation.
        augment: "one": gamma and warp each change one of the two images; "both": they change both.
        seed: with the number of an episode it decides everything in it, for any number of workers, after any resume.
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        sampler: NeighboursSampler | SliceSampler,
        ranges: Ranges,
        seed: int,
        augment: str = "one",
    ) -> None:
        self.scans, self.sampler, self.ranges, self.seed = scans, sampler, ranges, seed
        self.draw_changes = draw_for_both if augment == "both" else draw_for_one

    def __getitem__(self, number: int) -> Episode:
        """Episode `number`: images `(1, 1, 1, H, W)`, masks `(1, 1, H, W)`."""
        generator = np.random.default_rng((self.seed, number))
        choice = self.sampler.draw(generator)
        scan = self.scans[choice.scan]
        changes = self.draw_changes(generator, scan.image.shape[1:], self.ranges)
        slices = (choice.support_slice, choice.query_slice)
        (support, support_mask), (query, query_mask) = (
            change.apply(scan.image[z], (scan.segments[z] == choice.segment).astype(np.float32))
            for z, change in zip(slices, changes, strict=True)
        )
        return Episode(
            support_images=_tensor(support)[:, :, None],
            support_masks=_tensor(support_mask),
            query_images=_tensor(query)[:, :, None],
            query_masks=_tensor(query_mask).to(torch.uint8),
        )


def episode_loader(
    episodes: TrainingEpisodes,
    *,
    first: int,
    last: int,
    batch_size: int = 1,
    workers: int = 0,
    rank: int = 0,
    ranks: int = 1,
    pin_memory: bool = False,
) -> Iterator[Episode]:
    """Batches of steps `first` to `last - 1`; step s of rank r holds episodes (s * ranks + r) * batch_size onwards."""
    starts = ((step * ranks + rank) * batch_size for step in range(first, last))
    return iter(
        DataLoader(
            episodes,
            batch_sampler=[range(start, start + batch_size) for start in starts],
            collate_fn=Episode.stack,
            num_workers=workers,
            pin_memory=pin_memory,
            # its own generator: the loader must not disturb the random state that dropout draws from
            generator=torch.Generator(),
            worker_init_fn=_start_worker,
        )
    )


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _tensor(array: np.ndarray) -> Tensor:
    """`(H, W)` -> `(1, 1, H, W)` float32."""
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))[None, None]
