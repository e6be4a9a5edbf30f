"""Displacements between neighbouring slices on disk, and superpixels carried along them (SPPS) [visa 5].

They are made once before training by a registration network and read as memory-mapped files, so loaders know no
network, and a worker holds no more than the slices it looks at. Flows and not finished labels: two of them a slice
(half a MB at 256 x 256) carry any superpixel any number of slices.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dataloaders.scans import Scan
from util.errors import UserError
from util.files import whole_file

# (source slices, target slices), each (N, H, W) -> (N, 2, H, W): where the target's pixels are found in the source
Register = Callable[[np.ndarray, np.ndarray], np.ndarray]


def make_flows(folder: Path, scans: Sequence[Scan], reach: int, register: Register) -> list[np.ndarray]:
    """The displacement tables of some scans; those on disk stay as they are, the others are made.

    Args:
        folder: for `flows_<scan>.npy`.
        scans: with image.
        reach: farthest slice that is registered directly; 1 is enough for chained flows.
        register: the network.

    Returns:
        tables `(2 reach, D, 2, H, W)` float16, memory-mapped: `[o, z]` leads from slice z to slice z + offset o.

    Raises:
        UserError: a file cannot be written, or is damaged.
    """
    files = [folder / f"flows_{scan.number}.npy" for scan in scans]
    missing = [(file, scan) for file, scan in zip(files, scans, strict=True) if not file.is_file()]
    for file, scan in tqdm(missing, unit="scan", desc="registering neighbouring slices", disable=not missing):
        table = flows_of(scan.image, reach, register)
        with whole_file(file) as temporary:
            np.save(temporary, table)
    return [_read(file, scan, reach) for file, scan in zip(files, scans, strict=True)]


def flows_of(image: np.ndarray, reach: int, register: Register) -> np.ndarray:
    """The table of one scan `(D, H, W)`; zero where the other slice would lie outside."""
    depth = len(image)
    table = np.zeros((2 * reach, depth, 2, *image.shape[1:]), dtype=np.float16)
    for row, offset in enumerate(offsets(reach)):
        inside = slice(max(0, -offset), depth - max(0, offset))
        there = slice(max(0, offset), depth + min(0, offset))
        table[row, inside] = register(image[inside], image[there])
    return table


def offsets(reach: int) -> list[int]:
    """Offsets of the slices within reach, ascending, as the rows of a table."""
    return [offset for offset in range(-reach, reach + 1) if offset]


def _read(file: Path, scan: Scan, reach: int) -> np.ndarray:
    try:
        table = np.load(file, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged; delete it, the next training makes it again") from error
    if table.shape != (2 * reach, len(scan.image), 2, *scan.image.shape[1:]) or table.dtype != np.float16:
        raise UserError(f"{file}: was made for another scan {scan.number}; delete it, the next training makes it again")
    return table


class Carrier:
    """Carries masks from slice to slice.

    Args:
        tables: of `make_flows`, one per training scan.
        way: "chained": along the flows of all slices between (the paper); "direct": along one flow (its code).
    """

    def __init__(self, tables: Sequence[np.ndarray], way: str = "chained") -> None:
        self.tables, self.way = tables, way

    def carry(self, scan: int, mask: np.ndarray, source: int, target: int) -> np.ndarray:
        """A mask `(H, W)` of slice `source` as it lies on slice `target`: soft all the way, 0 or 1 at the end.

        Warping the mask on every slice was as good as composing the flows first (benchmarks/registration.py).
        """
        step = target - source if self.way == "direct" else int(np.sign(target - source))
        row = offsets(len(self.tables[scan]) // 2).index(step)
        for z in range(source, target, step):
            mask = sample(mask, self.tables[scan][row, z], cv2.BORDER_CONSTANT)
        return (mask >= 0.5).astype(np.float32)


def sample(image: np.ndarray, displacement: np.ndarray, border: int) -> np.ndarray:
    """`image` `(H, W)` at every pixel plus its displacement `(2, H, W)` (rows, columns), bilinear.

    `border` is OpenCV's: 0 beyond (masks), or the nearest pixel (flows).
    """
    rows, columns = np.indices(image.shape, dtype=np.float32) + displacement.astype(np.float32)
    return cv2.remap(image.astype(np.float32), columns, rows, cv2.INTER_LINEAR, borderMode=border)
