"""NIfTI files whose headers are as scanners, converters and accidents leave them."""

import struct
from pathlib import Path

import nibabel
import numpy as np

SHAPE, SPACING = (16, 14, 8), (7.0, 6.0, 9.0)  # (x, y, z)
AFFINE = np.array([[-7.0, 0, 0, 50], [0, 6.0, 0, -38], [0, 0, 9.0, -30], [0, 0, 0, 1]])  # to the left, front, head
EXCHANGED = AFFINE[:, [2, 1, 0, 3]]  # the same patient, stored from the first axis to the last
MIRRORED = np.diag([-1.0, 1, 1, 1]) @ AFFINE
FIELDS = {"pixdim": (76, "8f"), "units": (123, "B"), "srow": (280, "12f"), "quatern": (256, "3f")}
ORGAN = (slice(2, 6), slice(3, 5), slice(1, 4))


def scan(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Voxels `(x, y, z)`, int16, with a bright organ off the middle."""
    array = np.random.default_rng(0).integers(0, 200, shape).astype(np.int16)
    array[ORGAN] = 900
    return array


def write(path: Path, array=None, sform=AFFINE, qform=AFFINE, codes=(1, 1), kind=nibabel.Nifti1Image, **fields) -> Path:
    """A file with both transforms, codes of (sform, qform); `fields` are overwritten in its bytes afterwards."""
    image = kind(scan() if array is None else array, AFFINE)
    image.header.set_xyzt_units("mm")
    image.header.set_qform(qform, codes[1])
    image.header.set_sform(sform, codes[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(kind(image.dataobj, None, image.header), path)
    if fields:
        content = bytearray(path.read_bytes())
        for name, values in fields.items():
            offset, form = FIELDS[name]
            struct.pack_into("<" + form, content, offset, *np.resize(values, int(form[:-1] or 1)).tolist())
        path.write_bytes(bytes(content))
    return path
