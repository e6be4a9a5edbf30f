"""Training episodes: cut from scans, augmented, stacked. Episode k is a pure function of (seed, k)."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataloaders.augmentation import SLICES, Change, apply_changes, draw_changes
from dataloaders.device_augmentation import Unchanged
from dataloaders.flows import Carrier
from dataloaders.samplers import Choice, Sampler
from dataloaders.scans import Scan
from util.episode import IGNORE, Episode
from util.errors import UserError

View = tuple[np.ndarray, np.ndarray]  # an image and its mask


class TrainingEpisodes(Dataset):
    """Endless, numbered training episodes of one support slice and its queries.

    Args:
        scans: those that train, with segments.
        options: the `episode.*` keys of the augmentation, see `draw_changes`.
        seed: with the number of an episode it decides everything in it, for any number of workers, after any resume.
        carrier: takes the superpixels of realistic tasks to their queries; None = their labels are unknown (255).
        lost_labels: lose the label of a synthetic query unless the superpixel has number 1, as stage 2 of VISA-FSS was
            published [visa V2].

    With `episode.on_device` slices come as they are, with the changes that were drawn for them (`Unchanged`).
    """

    def __init__(
        self,
        scans: Sequence[Scan],
        sampler: Sampler,
        options: Mapping[str, Any],
        seed: int,
        carrier: Carrier | None = None,
        lost_labels: bool = False,
    ) -> None:
        self.scans, self.sampler, self.options, self.seed = scans, sampler, options, seed
        self.carrier, self.lost_labels = carrier, lost_labels

    def __getitem__(self, number: int) -> Episode | Unchanged:
        """Episode `number`: images `(1, 1|Q, 1, *)`, masks `(1, 1|Q, *)`."""
        generator = np.random.default_rng((self.seed, number))
        choice = self.sampler.draw(generator)
        later: list[tuple[Change, ...]] = []
        if choice.carried:
            views = self._carried(choice)
        elif self.options["on_device"]:
            views, later = self._drawn(choice, generator)
        else:
            views = self._augmented(choice, generator)
        images, masks = (
            torch.from_numpy(np.stack(arrays).astype(np.float32, copy=False))[None]
            for arrays in zip(*views, strict=True)
        )
        episode = Episode(
            support_images=images[:, :1, None],
            support_masks=masks[:, :1],
            query_images=images[:, 1:, None],
            query_masks=masks[:, 1:].to(torch.uint8),
            neighbours=torch.tensor([float(choice.carried)]),
        )
        return Unchanged(episode, later or [()] * len(views)) if self.options["on_device"] else episode

    def _augmented(self, choice: Choice, generator: np.random.Generator) -> list[View]:
        """Image and mask of the support and of every query, each changed by chance."""
        return [apply_changes(own, *view) for view, own in zip(*self._drawn(choice, generator), strict=True)]

    def _drawn(self, choice: Choice, generator: np.random.Generator) -> tuple[list[View], list[tuple[Change, ...]]]:
        """Image and mask of the support and of every query as they are, and the changes of each."""
        scan, slices = self.scans[choice.scan], (choice.support_slice, *choice.query_slices)
        changes = draw_changes(generator, scan, self.options, SLICES[self.options["augment"]], len(slices) - 1)
        views = [(scan.image[z], (scan.segments[z] == choice.segment).astype(np.float32)) for z in slices]
        if self.lost_labels and choice.segment != 1:
            views[1:] = [(image, np.zeros_like(mask)) for image, mask in views[1:]]
        return views, changes

    def _carried(self, choice: Choice) -> list[View]:
        """Image and mask of the support as they are, and of every query with the superpixel carried there."""
        scan, z = self.scans[choice.scan], choice.support_slice
        mask = (scan.segments[z] == choice.segment).astype(np.float32)
        found = [
            self.carrier.carry(choice.scan, mask, z, query) if self.carrier else np.full_like(mask, IGNORE)
            for query in choice.query_slices
        ]
        return [(scan.image[z], mask), *zip(scan.image[list(choice.query_slices)], found, strict=True)]


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
) -> Iterator[Episode | Unchanged]:
    """Batches of steps `first` to `last - 1`; step s of rank r holds episodes (s * ranks + r) * batch_size onwards."""
    starts = ((step * ranks + rank) * batch_size for step in range(first, last))
    loader = DataLoader(
        episodes,
        batch_sampler=[range(start, start + batch_size) for start in starts],
        collate_fn=_stack_arrays,
        num_workers=workers,
        # its own generator: the loader must not disturb the random state that dropout draws from
        generator=torch.Generator(),
        worker_init_fn=_start_worker,
    )
    for arrays in loader:
        episode = arrays.map(torch.from_numpy)
        yield episode.pin_memory() if pin_memory else episode


def _stack_arrays(episodes: Sequence[Episode] | Sequence[Unchanged]) -> Episode | Unchanged:
    """A batch of NumPy arrays. Workers send these through a pipe; tensors would need shared memory, which is scarce in
    containers, and a worker that gets none sends nothing and says nothing."""
    return type(episodes[0]).stack(episodes).map(Tensor.numpy)


@contextlib.contextmanager
def lost_workers() -> Iterator[None]:
    """A worker that ends (often killed for want of memory) ends the training; PyTorch raises it wherever that is.

    Raises:
        UserError: a worker has ended.
    """
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            f"a process that cuts episodes has ended ({str(error).splitlines()[0]}), often for want of memory; go on "
            "with resume= from the last checkpoint, and fewer of them (workers=0: none)"
        ) from error


def _start_worker(worker: int) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the training process's to answer
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()


def _leave_with(parent: int) -> None:
    """End this worker soon after a training that was killed: nobody takes the batch that it would hand over."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)
