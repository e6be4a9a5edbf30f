"""NIfTI and Analyze files: voxels as they are stored, and where the header says that they lie.

A NIfTI header can tell the place twice (sform, qform) and the spacing a third time (pixdim). What nibabel and the
field's viewers use counts here: the sform where it has a code, else the qform, else pixdim alone. Spacing and
directions come from this one transform; whatever does not agree with it is told.
"""

import logging
import re
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.analyze import AnalyzeHeader
from nibabel.nifti1 import Nifti1Header, Nifti1PairHeader
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.spm2analyze import Spm2AnalyzeHeader
from nibabel.spm99analyze import Spm99AnalyzeHeader
from nibabel.volumeutils import apply_read_scaling

from util.errors import UserError

GZIP, CHUNK = b"\x1f\x8b", 1 << 20
MARKS = tuple(size.to_bytes(4, order) for size in (348, 540) for order in ("little", "big"))
PAIR = re.compile(r"\.(hdr|img)(\.gz)?$", re.IGNORECASE)
SINGLE = (Nifti1Header, Nifti2Header)
# Analyze has no mark of its own, so only pairs may be that
PAIRED = (Nifti1PairHeader, Nifti2PairHeader, Spm2AnalyzeHeader, Spm99AnalyzeHeader, AnalyzeHeader)
UNITS = {0: 1.0, 1: 1000.0, 2: 1.0, 3: 0.001}  # mm; 0: not said, which everybody takes for mm
UNEVEN = 1e-3  # cosine between axes that are at right angles but for rounding
QUIET = logging.Logger("headers", logging.CRITICAL + 1)


@dataclass(frozen=True)
class Place:
    """Where voxels lie: `affine` `(4, 4)` from voxel (x, y, z) to mm to the right, front, head; `spacing` in mm.

    `doubts` are sentences about what in the header does not agree with it; `code` is the transform's own (0: none).
    """

    affine: np.ndarray
    spacing: np.ndarray
    code: int
    doubts: tuple[str, ...]


def unpacked(path: Path, enough: float = float("inf")) -> bytearray:
    """Content of a file, or of the gzip members in it whatever its name; what follows them is padding.

    `enough` are so many bytes, or a few more.

    Raises:
        EOFError, zlib.error: it is cut short, or its checksum is wrong.
    """
    content = bytearray()
    with open(path, "rb") as stream:
        chunk = stream.read(CHUNK)
        if not chunk.startswith(GZIP):
            return bytearray(chunk + stream.read() if len(chunk) < enough else chunk)
        while chunk.startswith(GZIP) and len(content) < enough:
            member = zlib.decompressobj(wbits=31)
            while chunk and not member.eof and len(content) < enough:
                content += member.decompress(chunk)
                chunk = member.unused_data or stream.read(CHUNK)
            if not member.eof and len(content) < enough:
                raise EOFError(path)
    return content


def read_header(path: Path) -> AnalyzeHeader | None:
    """The header as it stands, nothing mended; None: the file has another format.

    Raises:
        EOFError, zlib.error, ValueError: it is damaged.
    """
    return _header(unpacked(_member(path, "hdr"), 540), pair=PAIR.search(path.name) is not None)


def read_nifti(path: Path) -> tuple[AnalyzeHeader, np.ndarray] | None:
    """Header, and voxels `(x, y, z, ...)` with the header's scale; None: the file has another format.

    Raises:
        UserError: voxels are not one number, or there is more than one volume.
        EOFError, zlib.error, ValueError: it is damaged.
    """
    content = unpacked(_member(path, "hdr"))
    pair = PAIR.search(path.name) is not None
    header = _header(content, pair)
    if header is None:
        return None
    shape, kind = volume_shape(header), header.get_data_dtype()
    if kind.fields or kind.kind not in "iuf":
        what = "colours" if kind.fields else "complex numbers"
        raise UserError(f"{path}: a 3D volume with one value per voxel is expected, this one holds {what}")
    require_volume(path, shape)
    if pair:
        content = unpacked(_member(path, "img"))
    offset, size = header.get_data_offset(), int(np.prod(shape, dtype=object)) * kind.itemsize
    if offset < (0 if pair else header.single_vox_offset) or min(shape) < 1 or offset + size > len(content):
        raise EOFError(path)
    stored = np.ndarray(shape, kind, content, offset, order="F")
    slope, shift = header.get_slope_inter()
    array = apply_read_scaling(stored, np.float64(1.0 if slope is None else slope), np.float64(shift or 0.0))
    return header, array.astype(np.float64) if array.dtype.itemsize > 8 else array


def require_volume(path: Path, shape: tuple[int, ...], values: int = 1) -> None:
    """Refuse what is no 3D volume with one value per voxel; `shape` is `(x, y, z)`.

    Raises:
        UserError: it is another.
    """
    if len(shape) != 3 or values != 1:
        many = "; choose or write one of its volumes" if len(shape) > 3 or values > 1 else ""
        colours = f" and {values} values per voxel" if values > 1 else ""
        raise UserError(
            f"{path}: a 3D volume with one value per voxel is expected, this one has size {shape}{colours}{many}"
        )


def volume_shape(header: AnalyzeHeader) -> tuple[int, ...]:
    """Voxels `(x, y, z)`: further axes of length 1 are none."""
    shape = tuple(int(length) for length in header.get_data_shape())
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def place(header: AnalyzeHeader) -> Place:
    """Where the voxels lie, and every doubt about it.

    Raises:
        ValueError: nothing sound tells it; says what is wrong.
    """
    mended = header.copy()
    mended.check_fix(QUIET, error_level=1000)  # as nibabel does when it reads a file
    unit = UNITS.get(int(header["xyzt_units"]) & 7) if "xyzt_units" in header else 1.0
    doubts = [] if unit else ["its unit of length is none that NIfTI knows, mm is assumed"]
    lengths = np.abs(header["pixdim"][1:4].astype(float))
    scale = np.diag([unit or 1.0] * 3 + [1.0])
    transforms = {name: scale @ affine for name, affine in _transforms(mended, lengths).items()}
    name = next((name for name, affine in transforms.items() if _is_sound(affine)), None)
    if name is None:
        names = " and ".join(transforms)
        raise ValueError(f"its {names} (pixdim {by(lengths)}) is zero, not finite or flat: nothing tells its place")
    affine, code = transforms[name], int(mended.get(f"{name}_code", 0))
    doubts += _contradictions(transforms, name, volume_shape(header), lengths)
    if not code:
        doubts.append(
            "nothing in its header tells the orientation; as viewers do, columns are taken to run to the left, "
            "rows to the front, slices to the head"
        )
    steps, lengths = np.linalg.norm(affine[:3, :3], axis=0), lengths * scale[0, 0]
    exact = np.allclose(steps, lengths, rtol=1e-5, atol=0)  # pixdim has the decimals that a person wrote
    return Place(affine, lengths if exact else steps, code, tuple(doubts))


def _contradictions(transforms: dict[str, np.ndarray], name: str, shape: tuple[int, ...], lengths) -> list[str]:
    """What other transforms say against the one that is used, one sentence each."""
    found = []
    for other in transforms:
        if not _is_sound(transforms[other]):
            found.append(f"its {other} (pixdim {by(lengths)}) is zero, not finite or flat; the {name} is used")
        elif text := _disagreement(transforms[name], transforms[other], shape):
            found.append(f"its {other} is not its {name}: {text}; the {name} is used, as viewers do")
    return found


def _transforms(mended: AnalyzeHeader, lengths: np.ndarray) -> dict[str, np.ndarray]:
    """What the header tells of the place, `(4, 4)` each, by preference; broken ones hold NaN."""
    found, nothing = {}, np.full((4, 4), np.nan)
    if mended.get("sform_code"):
        found["sform"] = mended.get_sform()
    has_lengths = np.isfinite(lengths).all() and (lengths > 0).all()
    if mended.get("qform_code"):
        try:
            found["qform"] = mended.get_qform() if has_lengths else nothing
        except ValueError:  # no quaternion of a rotation
            found["qform"] = nothing
    elif found and _is_sound(found["sform"]):
        straight = found["sform"][:3, :3] / np.linalg.norm(found["sform"][:3, :3], axis=0)
        found["pixdim"] = np.block([[straight * lengths, found["sform"][:3, 3:]], [0, 0, 0, 1]])
    elif not found:
        found["pixdim"] = mended.get_best_affine() if has_lengths else nothing
    return found


def _is_sound(affine: np.ndarray) -> bool:
    steps = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not (steps > 0).all():
        return False
    return bool(abs(np.linalg.det(affine[:3, :3] / steps)) > UNEVEN)


def _disagreement(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> str:
    """How two transforms of a grid differ by more than half a voxel, or one spacing by 1 %; empty: they do not."""
    corners = np.stack(np.meshgrid(*[(0, length - 1) for length in shape], [1], indexing="ij")).reshape(4, -1)
    apart = float(np.linalg.norm(((one - other) @ corners)[:3], axis=0).max())
    steps = [np.linalg.norm(affine[:3, :3], axis=0) for affine in (one, other)]
    if apart <= 0.5 * steps[0].min() and np.allclose(*steps, rtol=0.01, atol=0):
        return ""
    if np.linalg.det(one[:3, :3]) * np.linalg.det(other[:3, :3]) < 0:
        return f"one mirrors the other, up to {apart:.4g} mm apart"
    return f"voxels of {by(steps[1])} mm against {by(steps[0])}, up to {apart:.4g} mm apart"


def by(lengths: Iterable[float], digits: int = 4) -> str:
    """Lengths in words: 1.25 x 1.25 x 7.7."""
    return " x ".join(f"{length:.{digits}g}" for length in lengths)


def _header(content: bytes, pair: bool) -> AnalyzeHeader | None:
    """The header at the start of a file; None: it has another format."""
    if bytes(content[:4]) not in MARKS:
        return None
    for kind in PAIRED if pair else SINGLE:
        block = bytes(content[: kind.sizeof_hdr])
        if kind.may_contain_header(block):
            header = kind(block, check=False)
            if "magic" not in header or header["magic"] == (header.pair_magic if pair else header.single_magic):
                return header
    raise ValueError("no NIfTI header")


def _member(path: Path, kind: str) -> Path:
    """The file itself, or of a pair its `hdr` or `img`."""
    if not PAIR.search(path.name):
        return path
    for file in sorted(path.parent.iterdir()):
        found = PAIR.search(file.name)
        if found and found[1].lower() == kind and PAIR.sub("", file.name) == PAIR.sub("", path.name):
            return file
    raise UserError(f"{path}: its {kind} file is missing; the two belong together")
