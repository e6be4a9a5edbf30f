"""Displacements between neighbouring slices on disk, and superpixels carried along them (SPPS) [visa 5].

The training of a registration network leaves them beside its checkpoint. Later trainings read them as memory-mapped
files, so loaders know no network, and a worker holds no more than the slices it looks at. Flows and not finished
labels: one for every neighbour of a slice (a quarter of a MB at 256 x 256) carries any superpixel of it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from dataloaders.augmentation import sample
from dataloaders.scans import Scan
from util.errors import UserError
from util.files import whole_file
from util.mapped import MappedArray

# (source slices, target slices), each (N, H, W) -> (N, 2, H, W): where the target's pixels are found in the source
Register = Callable[[np.ndarray, np.ndarray], np.ndarray]


def flows_folder(checkpoint: Path, reach: int) -> Path:
    """Where the flows of a registration network lie: beside its checkpoints, in the folder of the run."""
    return checkpoint.parent.parent / "flows" / f"{checkpoint.stem}_reach_{reach}"


def write_flows(folder: Path, scans: Sequence[Scan], reach: int, register: Register) -> None:
    """Write `flows_<scan>.npy` for every scan, see `flows_of`; those on disk stay as they are.

    Raises:
        UserError: a file cannot be written.
    """
    files = {folder / f"flows_{scan.number}.npy": scan for scan in scans}
    missing = [file for file in files if not file.is_file()]
    for file in tqdm(missing, unit="scan", desc="registering neighbouring slices", disable=not missing):
        with whole_file(file) as temporary:
            np.save(temporary, flows_of(files[file].image, reach, register))


def read_flows(checkpoint: Path, scans: Sequence[Scan], reach: int) -> list[MappedArray]:
    """The tables of some scans, memory-mapped, with at least this reach.

    Raises:
        UserError: the training of the network left none, or they do not reach as far, or a file is damaged.
    """
    folders = flows_folder(checkpoint, reach).parent.glob(f"{checkpoint.stem}_reach_*")
    reaches = sorted(int(folder.name.rpartition("_")[2]) for folder in folders)
    enough = [found for found in reaches if found >= reach]
    if not enough:
        lack = f"its flows reach {reaches[-1]} slices, {reach} are needed" if reaches else "no flows lie beside it"
        raise UserError(f"{checkpoint}: {lack}; {_remedy(checkpoint, reach)}")
    folder = flows_folder(checkpoint, enough[0])
    return [_read(folder / f"flows_{scan.number}.npy", scan, enough[0], checkpoint) for scan in scans]


def _read(file: Path, scan: Scan, reach: int, checkpoint: Path) -> MappedArray:
    try:
        table = MappedArray.of(file)
    except FileNotFoundError as error:
        raise UserError(f"{file}: no such file; {_remedy(checkpoint, reach)}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: damaged; delete it and {_remedy(checkpoint, reach)}") from error
    if table.shape != (2 * reach, len(scan.image), 2, *scan.image.shape[1:]) or table.dtype != np.float16:
        raise UserError(f"{file}: was made for another scan {scan.number}; delete it and {_remedy(checkpoint, reach)}")
    return table


def _remedy(checkpoint: Path, reach: int) -> str:
    return f"make it with: python training.py flows with resume={checkpoint} episode.reach={reach}"


def flows_of(image: np.ndarray, reach: int, register: Register) -> np.ndarray:
    """The table `(2 reach, D, 2, H, W)` float16 of one scan `(D, H, W)`: `[o, z]` leads from slice z to slice
    z + `offsets(reach)[o]`, and is zero where that would lie outside."""
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


class Carrier:
    """Carries masks from slice to slice.

    Args:
        tables: of `read_flows`, one per training scan.
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
