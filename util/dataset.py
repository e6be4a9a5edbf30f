"""What the program knows about a data set and a fold: rows of the tables in config.py."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from util.errors import UserError
from util.finding import numbered
from util.names import safe_names

MODALITIES = ("MR", "CT")
# keys of a data set's file -> what stands there
REQUIRED = {"images": str, "modality": str, "supervoxel_size": int, "organs": dict, "folds": list}
OPTIONAL = {"supervoxels": str, "superpixels": str, "size": int | None, "others": dict, "groups": dict}


@dataclass(frozen=True)
class Dataset:
    """One row of DATASETS.

    Attributes:
        images: folder of `image_N.nii.gz` and `label_N.nii.gz` below the data root.
        modality: "MR" or "CT"; the patient threshold, the default preparation and what methods do on CT follow from it.
        supervoxel_size: smallest supervoxel in voxels (the generator's min_size).
        organs: name -> label id in the files, for the organs that are tested.
        supervoxels: folder of `superpix-MIDDLE_N.nii.gz` below the data root; "" = `supervoxels_<size>` beside images.
        superpixels: folder of 2D superpixels (ALPNet); "" = `superpixels_400` beside images.
        size: the first `size` rows and columns are used (SABS is prepared 257 wide [training 8.4]); None = all.
        others: name -> label id of what the label files show besides and is never tested.
        groups: name -> organs that setting 2 excludes and tests together (the papers' "upper" and "lower" abdomen).

    Examples:
        >>> mine = Dataset("MINE/images", modality="CT", supervoxel_size=5000, organs={"liver": 6, "spleen": 1})
        >>> mine.chosen("liver")
        {'liver': 6}
        >>> mine.segment_file("data", 3).as_posix()
        'data/MINE/supervoxels_5000/superpix-MIDDLE_3.nii.gz'
    """

    images: str
    modality: str
    supervoxel_size: int
    organs: Mapping[str, int]
    supervoxels: str = ""
    superpixels: str = ""
    size: int | None = None
    others: Mapping[str, int] = field(default_factory=dict)
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def patient_threshold(self) -> float:
        """2D superpixels lie where the intensity is above this: prepared MR is 0 to 255, the air of windowed CT 0."""
        return 50.0001 if self.modality == "MR" else 1e-4

    def segment_folder(self, root: Path, kind: str = "supervoxels") -> Path:
        """Folder of the "supervoxels" or "superpixels"."""
        default = {"supervoxels": f"supervoxels_{self.supervoxel_size}", "superpixels": "superpixels_400"}[kind]
        return Path(root) / (getattr(self, kind) or Path(self.images).parent / default)

    def chosen(self, names: str) -> dict[str, int]:
        """Organs by name -> id: "all", a group, or names with commas between them.

        Raises:
            UserError: no such organ or group, or two organs would have one file.
        """
        safe_names(self.organs)
        if names == "all":
            return dict(self.organs)
        wanted = self.groups.get(names) or [name.strip() for name in names.split(",")]
        unknown = [name for name in wanted if name not in self.organs]
        if unknown:
            raise UserError(
                f"organs={names}: there is no {unknown[0]!r}; choose all, {', '.join([*self.groups, *self.organs])}, "
                "or several organs with commas between them"
            )
        return {name: identifier for name, identifier in self.organs.items() if name in wanted}

    def image_file(self, root: Path, scan: int) -> Path:
        """File of the intensities of a scan."""
        return Path(root) / self.images / f"image_{scan}.nii.gz"

    def label_file(self, root: Path, scan: int) -> Path:
        """File of the organ labels of a scan."""
        return Path(root) / self.images / f"label_{scan}.nii.gz"

    def segment_file(self, root: Path, scan: int, kind: str = "supervoxels") -> Path:
        """File of the "supervoxels" or "superpixels" of a scan."""
        return self.segment_folder(root, kind) / f"superpix-MIDDLE_{scan}.nii.gz"

    def scans(self, root: Path) -> list[int]:
        """Numbers of the scans on disk, ascending.

        Raises:
            UserError: the folder is missing or holds no image, or one that is not named as it must be.
        """
        folder = Path(root) / self.images
        if not folder.is_dir():
            raise UserError(
                f"{folder}: no such folder; name its parent with data_root=..., or prepare the data set "
                "(data/README.md; the phantom: python -m data.phantom)"
            )
        found, wrong, lost = numbered(folder, "image")
        if wrong or lost:
            raise UserError(f"{(wrong + lost)[0]}; rename it, or move it to another folder")
        if not found:
            raise UserError(f"{folder}: holds no image_N.nii.gz")
        return list(found)


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


def from_file(path: str | Path) -> tuple[Dataset, list[dict]]:
    """A data set and its folds from a JSON file, as `python -m data.custom` writes it.

    The keys are those of a row of DATASETS and `folds`, a list of lines as in FOLDS; folders are relative to the file.

    Raises:
        UserError: the file is missing or no JSON, or a key is missing, unknown or of another kind than it should be.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a data set or its .json file") from error
    except ValueError as error:
        raise UserError(f"{path}: is not JSON ({error})") from error
    content = content if isinstance(content, dict) else {}
    kinds = REQUIRED | OPTIONAL
    missing, unknown = sorted(REQUIRED.keys() - content.keys()), sorted(content.keys() - kinds.keys())
    if "patient_threshold" in unknown:
        raise UserError(f'{path}: patient_threshold is no longer a key; write "modality": "MR" or "CT" in its place')
    if missing or unknown:
        what = f"the key {missing[0]!r} is missing" if missing else f"there is no key {unknown[0]!r}"
        raise UserError(f"{path}: {what}; python -m data.custom writes such a file")
    for key, value in content.items():
        if not isinstance(value, kinds[key]) or isinstance(value, bool):
            raise UserError(f"{path}: {key} is {value!r}, which is of the wrong kind")
    if content["modality"] not in MODALITIES:
        raise UserError(f"{path}: modality is {content['modality']!r}; choose {' or '.join(MODALITIES)}")
    ids = [*content["organs"].values(), *content.get("others", {}).values()]
    if not content["organs"] or not all(type(number) is int and 0 < number < 2**15 for number in ids):
        raise UserError(f"{path}: organs and others are names with label ids from 1 to 32767, at least one organ")
    if len(set(ids)) < len(ids):
        raise UserError(f"{path}: the label id {Counter(ids).most_common(1)[0][0]} has two names in organs and others")
    for key in ("supervoxel_size", "size"):
        if content.get(key) is not None and content[key] < 1:
            raise UserError(f"{path}: {key} is {content[key]}; it must be at least 1")
    for name, members in content.get("groups", {}).items():
        if not isinstance(members, list) or not members or not all(member in content["organs"] for member in members):
            raise UserError(f"{path}: the group {name!r} is {members!r}; a list of names in organs is expected")
    safe_names([*content["organs"], *content.get("others", {})])
    folds = content.pop("folds")
    for key in content.keys() & {"images", "supervoxels", "superpixels"}:
        content[key] = str(path.resolve().parent / content[key])
    return Dataset(**content), folds


def choose_fold(folds: Mapping[str, list[Mapping]], dataset: str, index: int) -> Fold:
    """The fold `index` of a data set from the table FOLDS.

    Raises:
        UserError: no such fold, a malformed line, or a support scan that is also a query.
    """
    lines = folds.get(dataset, [])
    if not 0 <= index < len(lines):
        raise UserError(f"fold={index}: FOLDS['{dataset}'] in config.py has folds 0 to {len(lines) - 1}")
    line, where = lines[index], f"fold {index} of FOLDS['{dataset}'] in config.py"
    if not isinstance(line, Mapping) or set(line) != {"support", "query"}:
        raise UserError(f"{where}: write dict(support=8, query=[1, 2, 3]); got {line}")
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
    """Check that the scans of a fold are on disk; `where` it is stated.

    Raises:
        UserError: names the scans that are missing.
    """
    missing = sorted(fold.tested - set(scans))
    if missing:
        raise UserError(
            f"{where} names scan(s) {missing} but {folder} holds no image_{missing[0]}.nii.gz; found scans {scans}"
        )
