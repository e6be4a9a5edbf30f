"""NIfTI inputs: headers changed byte by byte and field by field, damaged gzip streams; nibabel is the witness."""

import contextlib
import gzip
from collections.abc import Iterator
from pathlib import Path

import nibabel
import numpy as np
from nibabel.spatialimages import HeaderDataError
from scipy.spatial.transform import Rotation

from benchmarks.campaign.mutations import Random, changed_bytes, changed_number, pick
from benchmarks.campaign.trials import Kind, NoWitness
from data.parts.integrity import check_scan
from dataloaders.raw.sources import Source, read_source
from dataloaders.scans import read_scan
from util.dataset import Dataset
from util.volume import Volume, read_volume

SHAPE = (7, 6, 5)  # x, y, z
DTYPES = ("uint8", "int8", "int16", "uint16", "int32", "float32", "float64")
ENDINGS = (".nii", ".nii.gz", ".nii.gz", ".hdr")
PLACES = (
    "dim", "pixdim", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "srow_x", "srow_y",
    "srow_z", "xyzt_units", "scl_slope", "scl_inter", "datatype", "bitpix", "vox_offset",
)  # fmt: skip
UNIT = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # in mm; nibabel tells the unit and does not use it
EXACT = 0.02  # voxels: places that are the same
APART = 1.0  # voxels: two transforms of one header that are not
ORGANS = {"liver": 1, "spleen": 2}
DATASET = Dataset(".", modality="MR", supervoxel_size=10, organs=ORGANS, supervoxels="supervoxels_10")


def some_affine(random: Random, oblique: bool) -> np.ndarray:
    """`(4, 4)`: voxels of 2 to 4 mm, axes in any order and direction, turned a little if `oblique`."""
    axes = np.eye(3)[random.permutation(3)] * random.choice([-1, 1], 3)
    if oblique:
        axes = Rotation.from_euler("xyz", random.uniform(-20, 20, 3), degrees=True).as_matrix() @ axes
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = axes * random.uniform(2, 4, 3), random.uniform(-90, 90, 3)
    return affine


def some_values(random: Random, dtype: str) -> np.ndarray:
    """Voxels `(x, y, z)`, 0 to 99."""
    return random.integers(0, 100, SHAPE).astype(dtype)


def some_label() -> np.ndarray:
    """Voxels `(x, y, z)` of ids 0 to 2 in blocks, none of them symmetric."""
    label = np.zeros(SHAPE, np.uint8)
    label[1:4, 1:3, 1:4], label[4:6, 2:5, 2:] = 1, 2
    return label


def save(file: Path, array: np.ndarray, affine: np.ndarray, random: Random) -> None:
    """Write a sound file: NIfTI-1 or 2, either byte order, sform or qform or both, scaled or not."""
    kind = pick(random, (nibabel.Nifti1Image, nibabel.Nifti1Image, nibabel.Nifti2Image))
    if file.suffix == ".hdr":
        kind = pick(random, (nibabel.Nifti1Pair, nibabel.Nifti2Pair))
    header = kind.header_class(endianness=pick(random, "<<>"))
    header.set_data_dtype(array.dtype)
    image = kind(array, affine, header)
    codes = pick(random, ((1, 1), (2, 1), (0, 1), (1, 0)))
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_xyzt_units("mm")
    nibabel.save(image, file)


@contextlib.contextmanager
def unpacked(file: Path) -> Iterator[bytearray]:
    """The content of a file without gzip, to be changed; it is written back."""
    packed = file.name.endswith(".gz")
    content = bytearray(gzip.decompress(file.read_bytes()) if packed else file.read_bytes())
    yield content
    file.write_bytes(gzip.compress(content, 1, mtime=0) if packed else content)


def damage_header(file: Path, random: Random) -> None:
    """Change one or two fields of the header, or bytes of it."""
    with unpacked(file) as content:
        for _ in range(pick(random, (1, 1, 1, 2))):
            if random.random() < 0.3:
                at = min(int(random.integers(352)), len(content) - 1)
                content[at] = pick(random, (0, 255, content[at] ^ 1 << int(random.integers(8)), 1, 127))
            else:
                _change_field(content, random)


def _change_field(content: bytearray, random: Random) -> None:
    order = "<" if content[0] in (92, 28) else ">"  # 348, 540
    is_first = len(content) < 540 or bytes(content[:4]) in (b"\x5c\x01\0\0", b"\0\0\x01\x5c")
    kind = (nibabel.Nifti1Header if is_first else nibabel.Nifti2Header).template_dtype.newbyteorder(order)
    header = np.frombuffer(content, kind, 1)
    name = pick(random, PLACES if random.random() < 0.8 else kind.names)
    field = header[name].reshape(-1)
    if field.dtype.kind == "S":
        field[0] = random.bytes(field.itemsize)
        return
    at = int(random.integers(len(field)))
    with np.errstate(all="ignore"):
        field[at] = np.asarray(changed_number(field[at].item(), random)).astype(field.dtype)


def witness(file: Path) -> tuple[np.ndarray, np.ndarray, nibabel.Nifti1Image]:
    """Voxels `(x, y, z)`, affine to mm, and the image, as nibabel reads them.

    Raises:
        NoWitness: it does not.
    """
    try:
        with np.errstate(all="ignore"):
            image = nibabel.load(file)
            array = np.asanyarray(image.dataobj)
    except Exception as error:
        raise NoWitness(f"nibabel: {type(error).__name__}: {error}") from error
    while array.ndim > 3 and array.shape[-1] == 1:
        array = array[..., 0]
    unit = UNIT.get(int(image.header["xyzt_units"]) & 7, 1.0) if "xyzt_units" in image.header else 1.0
    return array, np.diag([unit] * 3 + [1.0]) @ image.affine, image


def affine_of(volume: Volume) -> np.ndarray:
    """Voxel (x, y, z) -> mm to the right, front and head, as the product has it."""
    axes = np.reshape(volume.geometry.direction, (3, 3)) * volume.geometry.spacing
    return np.diag([-1, -1, 1, 1]) @ np.block([[axes, np.reshape(volume.geometry.origin, (3, 1))], [0, 0, 0, 1]])


def apart(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """The farthest that a corner of the grid lies between two affines, in voxels of the first."""
    corners = np.stack(np.meshgrid(*[(0, length - 1) for length in shape], [1], indexing="ij")).reshape(4, -1)
    steps = np.linalg.norm(one[:3, :3], axis=0)
    rounding = 1e-6 * np.abs(one[:3, 3]).max()  # offsets are float32
    return float(max(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max() - rounding, 0) / steps.min())


def contradiction(file: Path, volume: Volume) -> str:
    """What nibabel says against a volume that was read from a file."""
    array, affine, image = witness(file)
    if array.shape != volume.array.shape[::-1]:
        return f"nibabel: size {array.shape}, read as {volume.array.shape[::-1]}"
    if not np.allclose(array.astype(float), volume.array.T.astype(float), rtol=1e-6, atol=1e-9, equal_nan=True):
        return "nibabel: other values"
    if volume.doubts:
        return ""  # told
    distance = apart(affine, affine_of(volume), array.shape)
    if not distance < EXACT:
        return f"nibabel: voxels lie {distance:.3g} voxels away, at\n{affine}\nread as\n{affine_of(volume)}"
    return _untold(image, array.shape)


def _untold(image: nibabel.Nifti1Image, shape: tuple[int, ...]) -> str:
    """What is inconsistent in a header whose volume came without a doubt."""
    header = image.header
    if not int(header["sform_code"]) and not int(header["qform_code"]):
        return "silent: neither sform nor qform has a code"
    if int(header["sform_code"]) and int(header["qform_code"]):
        try:
            distance = apart(header.get_sform(), header.get_qform(), shape)
        except (ValueError, HeaderDataError):
            distance = np.inf
        if not distance < APART:
            return f"silent: sform and qform are {distance:.3g} voxels apart"
    steps = np.linalg.norm(image.affine[:3, :3], axis=0)
    if not np.allclose(np.abs(header["pixdim"][1:4]), steps, rtol=0.05):
        return f"silent: pixdim {header['pixdim'][1:4]}, the transform has {steps}"
    return ""


class Headers(Kind):
    """One scan with a changed header."""

    name, share = "nifti", 3.0

    def write(self, folder: Path, random: Random) -> None:
        """A sound scan."""
        array = some_values(random, pick(random, DTYPES))
        save(folder / f"scan{pick(random, ENDINGS)}", array, some_affine(random, random.random() < 0.5), random)

    def damage(self, folder: Path, random: Random) -> None:
        """Change its header."""
        damage_header(self.file(folder), random)

    def file(self, folder: Path) -> Path:
        """The scan; of a pair, its header."""
        return max(folder.iterdir(), key=lambda path: path.suffix != ".img")

    def read(self, folder: Path) -> Volume:
        """As all commands do."""
        return read_volume(self.file(folder))

    def contradiction(self, folder: Path, result: Volume) -> str:
        """What nibabel says."""
        return contradiction(self.file(folder), result)


class Streams(Headers):
    """One scan in a damaged file. Packed ones carry a checksum, so they hold what they held before, or are refused."""

    name, share = "gzip", 1.5

    def write(self, folder: Path, random: Random) -> None:
        """A sound scan."""
        super().write(folder, random)
        self.named = self.file(folder)
        self.sound = gzip.decompress(self.named.read_bytes()) if self.named.suffix == ".gz" else b""

    def damage(self, folder: Path, random: Random) -> None:
        """Change its bytes, header excepted unless they are packed; or give it another name."""
        file = self.named
        if random.random() < 0.1 and file.suffix != ".hdr":
            file.rename(folder / pick(random, ("scan.nii", "scan.nii.gz", "SCAN.NII.GZ", "scan", "scan.bin")))
            return
        content = file.read_bytes()
        start = 0 if self.sound else 352
        file.write_bytes(content[:start] + changed_bytes(content[start:] or b"\0", random))

    def contradiction(self, folder: Path, result: Volume) -> str:
        """What nibabel says of the file under its own name, and of what it was if gzip refuses it."""
        file = self.file(folder)
        if file != self.named:
            file.rename(self.named)
        if self.sound:
            try:
                gzip.decompress(self.named.read_bytes())
            except (OSError, EOFError):
                plain = folder / "unpacked.nii"
                plain.write_bytes(self.sound)
                return contradiction(plain, result)
        return contradiction(self.named, result)


class Pairs(Kind):
    """An image and its label, stored in another order of axes; one of the two headers is changed."""

    name, share = "label", 2.0

    def write(self, folder: Path, random: Random) -> None:
        """Image and label of one place; the label's axes may be exchanged and reversed, as its header says."""
        affine = some_affine(random, random.random() < 0.5)
        save(folder / "image.nii", some_values(random, "int16"), affine, random)
        label = nibabel.Nifti1Image(some_label(), affine)
        if random.random() < 0.7:
            signs = random.choice([-1, 1], 3)
            order = np.stack([random.permutation(3), signs], axis=1)
            label = label.as_reoriented(order)
        save(folder / "label.nii.gz", np.asanyarray(label.dataobj), label.affine, random)

    def damage(self, folder: Path, random: Random) -> None:
        """Change a header of the two."""
        damage_header(folder / pick(random, ("image.nii", "label.nii.gz")), random)

    def read(self, folder: Path) -> tuple[Volume, Volume]:
        """As the preparations and predict.py do."""
        return read_source(Source((folder / "image.nii",), (folder / "label.nii.gz",)), None, False)

    def contradiction(self, folder: Path, result: tuple[Volume, Volume]) -> str:
        """Whether every voxel of the image has the label that lies at its place."""
        image, label = result
        if text := contradiction(folder / "image.nii", image):
            return text
        (_, place, _), (ids, home, _) = witness(folder / "image.nii"), witness(folder / "label.nii.gz")
        if image.doubts or label.doubts:
            return ""
        voxels = np.stack(np.meshgrid(*map(range, label.array.shape[::-1]), [1], indexing="ij")).reshape(4, -1)
        there = np.rint(np.linalg.solve(home, place @ voxels)[:3]).astype(int)
        outside = ((there < 0) | (there >= np.reshape(ids.shape, (3, 1)))).any()
        if outside or not np.array_equal(ids[tuple(there)], label.array.T.reshape(-1)):
            return "nibabel: the label at the place of the image's voxels is another"
        return ""


class Prepared(Kind):
    """A scan of a prepared data set (image, label, supervoxels); one of its files is damaged."""

    name, share = "scan", 1.0
    FILES = ("image_1.nii.gz", "label_1.nii.gz", "supervoxels_10/superpix-MIDDLE_1.nii.gz")

    def write(self, folder: Path, random: Random) -> None:
        """A sound scan."""
        affine = some_affine(random, oblique=False)
        (folder / self.FILES[2]).parent.mkdir()
        arrays = some_values(random, "int16"), some_label(), some_label().astype(np.int32) + 1
        for name, array in zip(self.FILES, arrays, strict=True):
            save(folder / name, array, affine, random)

    def damage(self, folder: Path, random: Random) -> None:
        """Change one file's header or bytes."""
        file = folder / pick(random, self.FILES)
        if random.random() < 0.7:
            damage_header(file, random)
        else:
            file.write_bytes(changed_bytes(file.read_bytes(), random))

    def read(self, folder: Path) -> Volume:
        """As data.check and the training do; the check must not raise anything."""
        try:
            check_scan(DATASET, folder, 1)
        except BaseException as error:
            raise AssertionError("check_scan raises") from error
        return read_scan(DATASET, folder, 1, segments="supervoxels")

    def contradiction(self, folder: Path, result: Volume) -> str:
        """Whether image and label are those of one place."""
        (_, one, _), (ids, other, _) = (witness(folder / name) for name in self.FILES[:2])
        if not np.array_equal(ids.T, result.label):
            return "nibabel: other labels"
        if any(read_volume(folder / name).doubts for name in self.FILES[:2]):
            return ""  # data.check tells them
        distance = apart(one, other, ids.shape)
        return "" if distance < APART else f"nibabel: the label lies {distance:.3g} voxels away from its image"
