"""What the program knows about a data set and a fold: rows of the tables in config.py."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from util.errors import UserError


@dataclass(frozen=True)
class Dataset:
    """One row of DATASETS.

    Attributes:
        images: folder of `image_N.nii.gz` and `label_N.nii.gz` below the data root.
        supervoxels: folder of `superpix-MIDDLE_N.nii.gz` below the data root.
        supervoxel_size: smallest supervoxel in voxels (the generator's min_size).
        superpixels: folder of 2D superpixels, `superpix-MIDDLE_N.nii.gz` too (ALPNet).
        patient_threshold: superpixels lie where the intensity is above this: 50.0001 for MR, 0.0001 for windowed CT.
        organs: name -> label id in the files, for the organs that are tested.
        size: the first `size` rows and columns are used (SABS is prepared 257 wide, spec training_protocol 8.4);
            None = all.
    """

    images: str
    supervoxels: str
    supervoxel_size: int
    superpixels: str
    patient_threshold: float
    organs: Mapping[str, int]
    size: int | None = None

    def image_file(self, root: Path, scan: int) -> Path:
        """File of the intensities of a scan."""
        return Path(root) / self.images / f"image_{scan}.nii.gz"

    def label_file(self, root: Path, scan: int) -> Path:
        """File of the organ labels of a scan."""
        return Path(root) / self.images / f"label_{scan}.nii.gz"

    def segment_file(self, root: Path, scan: int, kind: str = "supervoxels") -> Path:
        """File of the "supervoxels" or "superpixels" of a scan."""
        return Path(root) / getattr(self, kind) / f"superpix-MIDDLE_{scan}.nii.gz"

    def scans(self, root: Path) -> list[int]:
        """Numbers of the scans on disk, ascending.

        Raises:
            UserError: the folder is missing or holds no image.
        """
        folder = Path(root) / self.images
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; name its parent with data_root=..., or prepare the data set "
                "(data/README.md; the phantom: python -m data.phantom)"
            )
        found = [re.fullmatch(r"image_(\d+)\.nii\.gz", path.name) for path in folder.iterdir()]
        numbers = sorted(int(match.group(1)) for match in found if match)
        if not numbers:
            raise UserError(f"{folder}: holds no image_N.nii.gz")
        return numbers


@dataclass(frozen=True)
class Fold:
    """Which scans are tested: one annotated support scan and the query scans. All other scans train."""

    support: int
    query: tuple[int, ...]

    @property
    def tested(self) -> frozenset[int]:
        """Scans that training must not see."""
        return frozenset((self.support, *self.query))

    def training(self, scans: list[int]) -> list[int]:
        """The scans that train."""
        return [scan for scan in scans if scan not in self.tested]


def choose_fold(folds: Mapping[str, list[Mapping]], dataset: str, index: int) -> Fold:
    """The fold `index` of a data set from the table FOLDS.

    Raises:
        UserError: no such fold, a malformed line, or a support scan that is also a query.
    """
    lines = folds.get(dataset, [])
    if not 0 <= index < len(lines):
        raise UserError(f"fold={index}: FOLDS['{dataset}'] in config.py has folds 0 to {len(lines) - 1}")
    line, where = lines[index], f"fold {index} of FOLDS['{dataset}'] in config.py"
    if set(line) != {"support", "query"}:
        raise UserError(f"{where}: write dict(support=8, query=[1, 2, 3]); got the keys {sorted(line)}")
    support, query = line["support"], line["query"]
    numbers = [support, *query] if isinstance(query, list | tuple | range) else [None]
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in numbers) or len(numbers) < 2:
        raise UserError(f"{where}: support is one scan number, query a list of at least one")
    if support in query or len(set(query)) < len(query):
        raise UserError(
            f"{where}: scan {support} cannot be support and query at once, and no query stands twice; "
            f"support={support}, query={list(query)}"
        )
    return Fold(support, tuple(query))


def require_scans(fold: Fold, scans: list[int], folder: Path, where: str) -> None:
    """Check that the scans of a fold are on disk, and that some are left to train.

    Raises:
        UserError: names the scans that are missing.
    """
    missing = sorted(fold.tested - set(scans))
    if missing:
        raise UserError(
            f"{where} names scan(s) {missing} but {folder} holds no image_{missing[0]}.nii.gz; found scans {scans}"
        )
