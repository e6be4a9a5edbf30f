"""Segment test tasks with a 3D method: whole volumes, or, if memory is short, patches that overlap.

Patches are encoded, and their FEATURES are put together before the one match over the whole volume. So the prototype
comes from the whole support, predictions are resized once, and patches change only what a patch's border cuts off from
the encoder's view. The published 3D script, for all its name, knows no patches [adnet 7.3].
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from util.errors import UserError
from util.evaluation.tasks import Group, Task
from util.memory import GIB, forward_bytes

log = logging.getLogger(__name__)

SCRATCH = 1.5  # kernels need more than the tensors that are counted: 1.3 times as much for resnext101_3d on a CPU
# Standard deviation of a patch's weights, in patch sizes. Weights are almost zero (1e-5) within a fifth of a patch from
# its border, so each cell comes from patches that see enough around it. Products of three weights stay above 1e-24.
SPREAD = 1 / 24
SHALLOWEST = 8  # slices; below, patches lose more in the plane than they gain in depth


class EncodedVolume(NamedTuple):
    """A scan and its features `(C, D, h, w)`."""

    scan: Any
    features: tuple[Tensor, ...]


class VolumeInference:
    """A 3D method as a segmenter (see `util.evaluation.tasks.Segmenter`).

    Args:
        method, read_scan, device: as in `SliceInference`.
        patch: slices, rows and columns encoded at once; 0 = all of that axis.
        memory_gb: patches are made so small that the encoder's tensors fit in this; 0 = no bound.
        blend: patches overlap by half, and count less towards their borders; False: they lie side by side.

    Raises:
        UserError: the patch is not three numbers.
    """

    def __init__(
        self,
        method: torch.nn.Module,
        read_scan: Callable[[int], Any],
        device: torch.device,
        *,
        patch: Sequence[int] = (0, 0, 0),
        memory_gb: float = 0.0,
        blend: bool = True,
    ) -> None:
        if len(patch) != 3 or min(patch) < 0:
            raise UserError(f"test.patch={list(patch)}: slices, rows and columns are expected, 0 = all of them")
        self.method, self.read_scan, self.device = method, read_scan, device
        self.patch, self.memory_gb, self.blend = tuple(patch), memory_gb, blend
        self._encoded: dict[int, EncodedVolume] = {}

    def keep(self, scans: frozenset[int]) -> None:
        """Forget the features of all other scans."""
        self._encoded = {number: known for number, known in self._encoded.items() if number in scans}

    @torch.inference_mode()
    def probabilities(self, task: Task) -> np.ndarray:
        """Foreground probabilities `(D, H, W)` of a task, float32; 0 on slices that are not segmented.

        Raises:
            UserError: the task asks for slices one by one.
        """
        if task.similar or any(group.pivot is not None for group in task.groups):
            raise UserError(
                "test.pairing: this method sees whole volumes, which cannot be walked or sorted slice by slice; "
                "choose volume, whole, parts or position"
            )
        query = self.encoded(task.query)
        volume = np.zeros(query.scan.image.shape, dtype=np.float32)
        asked = tuple(f[None, None] for f in query.features)
        for group in task.groups:
            output = self.method.match(*self._annotated(group, task.identifier), asked)
            slices = list(group.query_slices)
            volume[slices] = output.probabilities[0, 0, slices].float().cpu().numpy()
        return volume

    @torch.inference_mode()
    def encoded(self, number: int) -> EncodedVolume:
        """A scan with its features, encoded on first use."""
        if number not in self._encoded:
            scan = self.read_scan(number)
            image = torch.from_numpy(scan.image)
            features = encode_patches(self.method, image, self.device, self.patch_of(image.shape), self.blend)
            self._encoded[number] = EncodedVolume(scan, features)
        return self._encoded[number]

    def patch_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The patch for a volume of `shape`.

        Raises:
            UserError: not even the smallest one keeps the bound.
        """
        patch = tuple(min(p or side, side) for p, side in zip(self.patch, shape, strict=True))
        if not self.memory_gb:
            return patch
        step = max(self.method.encoder.strides)
        while (needed := self._gib(patch)) > self.memory_gb:
            smaller = _smaller(patch, step)
            if smaller == patch:
                raise UserError(
                    f"test.memory_gb={self.memory_gb:g}: a patch of {patch} voxels needs {needed:.2g}; allow as much"
                )
            patch = smaller
        log.info("volume %s in patches of %s: about %.2g GB for the encoder", tuple(shape), patch, needed)
        return patch

    def _gib(self, patch: tuple[int, ...]) -> float:
        return SCRATCH * forward_bytes(self.method.encoder, (1, 1, *patch)) / GIB

    def _annotated(self, group: Group, identifier: int) -> tuple[tuple[Tensor, ...], Tensor]:
        """Features `(1, S, C, D, h, w)` and masks `(1, S, D, H, W)`, one shot per scan, with its annotated slices only.

        Scans of fewer slices than others get empty ones, which no mask points at.
        """
        shots = {number: self.encoded(number) for number, _ in group.support}
        masks = []
        for number, shot in shots.items():
            shown = np.zeros(shot.scan.image.shape, dtype=np.float32)
            slices = [z for scan, z in group.support if scan == number]
            shown[slices] = shot.scan.organ(identifier)[slices]
            masks.append(torch.from_numpy(shown).to(self.device))
        depth = max(len(mask) for mask in masks)
        features = zip(*([_deepened(f, depth) for f in shot.features] for shot in shots.values()), strict=True)
        together = torch.stack([_deepened(mask, depth) for mask in masks])
        return tuple(torch.stack(maps)[None] for maps in features), together[None]


def encode_patches(
    method: torch.nn.Module, image: Tensor, device: torch.device, patch: Sequence[int], blend: bool = True
) -> tuple[Tensor, ...]:
    """Features `(C, D, h, w)` of a volume `(D, H, W)`, patch by patch.

    Patches begin where the encoder's strides put a cell, so their cells are the volume's.
    """
    step = max(method.encoder.strides)
    patch = (patch[0], *(-(-side // step) * step for side in patch[1:]))
    totals: tuple[Tensor, ...] = ()
    for corner in _corners(image.shape, patch, step, blend):
        part = image[tuple(slice(start, start + size) for start, size in zip(corner, patch, strict=True))]
        maps = tuple(f[0] for f in method.encode(part[None, None].to(device)))
        if part.shape == image.shape:
            return maps
        strides = method.encoder.strides[-len(maps) :]
        if not totals:  # one channel more, for the sum of the weights
            sizes = [(image.shape[0], *(-(-side // stride) for side in image.shape[1:])) for stride in strides]
            totals = tuple(f.new_zeros(len(f) + 1, *size) for f, size in zip(maps, sizes, strict=True))
        for total, found, stride in zip(totals, maps, strides, strict=True):
            start = (corner[0], *(c // stride for c in corner[1:]))
            weights = _weights(start, found.shape[1:], total.shape[1:], blend).to(found)
            place = tuple(slice(s, s + size) for s, size in zip(start, found.shape[1:], strict=True))
            total[:, *place] += torch.cat((found * weights, weights[None]))
    return tuple(total[:-1] / total[-1] for total in totals)


def _corners(shape: Sequence[int], patch: Sequence[int], step: int, blend: bool) -> Iterator[tuple[int, ...]]:
    """First voxels of the patches that cover a volume; in the plane at multiples of `step`."""
    axes = []
    for axis, (length, size) in enumerate(zip(shape, patch, strict=True)):
        unit = step if axis else 1
        stride = max(size // 2 // unit * unit, unit) if blend else size
        last = max(-(-(length - size) // unit) * unit, 0)
        axes.append([*range(0, last, stride), last])
    return itertools.product(*axes)


def _weights(start: Sequence[int], size: Sequence[int], whole: Sequence[int], blend: bool) -> Tensor:
    """Weights `size` of a patch's cells: 1, or Gaussian towards those borders that are not the volume's."""
    weights = torch.ones(tuple(size))
    for axis, (first, count, length) in enumerate(zip(start, size, whole, strict=True)):
        aside = torch.arange(count) - (count - 1) / 2  # of the middle
        cut_below, cut_above = first > 0, first + count < length
        aside = aside.clamp(-count if cut_below else 0, count if cut_above else 0)
        if blend:
            along = torch.exp(-0.5 * (aside / (SPREAD * count)) ** 2)
            weights *= along.reshape([-1 if a == axis else 1 for a in range(3)])
    return weights


def _smaller(patch: tuple[int, ...], step: int) -> tuple[int, ...]:
    """A patch with half the slices while there are many, then a quarter off the longer side; itself if smallest.

    Borders through the slices take little from the view, those through the plane much (models/README.md, Volumes).
    """
    depth, *plane = patch
    if depth > SHALLOWEST:
        return (max(-(-depth // 2), SHALLOWEST), *plane)
    axis = int(np.argmax(plane))
    plane[axis] = min(max(-(-3 * plane[axis] // (4 * step)) * step, 4 * step), plane[axis])
    return (depth, *plane)


def _deepened(volume: Tensor, depth: int) -> Tensor:
    """`(..., D, h, w)` with empty slices up to `depth`."""
    return torch.nn.functional.pad(volume, (0, 0, 0, 0, 0, depth - volume.shape[-3]))
