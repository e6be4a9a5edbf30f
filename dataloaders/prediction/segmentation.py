"""A segmentation as a DICOM object on the series it was made from, for viewers and archives of a hospital.

`highdicom` writes it; the package is optional. Segments have codes of SNOMED CT where their names are known.
"""

import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pydicom
from pydicom.uid import generate_uid

from util import __version__
from util.errors import UserError
from util.files import whole_file
from util.pictures import colour

PACKAGE = "highdicom"
KIND = ("123037004", "Anatomical Structure")
SIDES = {"right": ("24028007", "Right"), "left": ("7771000", "Left")}
# name without its side -> code and meaning
CODES = {
    "liver": ("10200004", "Liver"),
    "kidney": ("64033007", "Kidney"),
    "spleen": ("78961009", "Spleen"),
    "gallbladder": ("28231008", "Gallbladder"),
    "oesophagus": ("32849002", "Esophagus"),
    "stomach": ("69695003", "Stomach"),
    "aorta": ("15825003", "Aorta"),
    "inferior vena cava": ("64131007", "Inferior vena cava"),
    "portal and splenic vein": ("32764006", "Portal vein"),
    "pancreas": ("15776009", "Pancreas"),
    "adrenal gland": ("23451007", "Adrenal gland"),
    "LV myocardium": ("74281007", "Myocardium"),
    "LV blood pool": ("87878005", "Left ventricle of heart"),
    "right ventricle": ("53085002", "Right ventricle of heart"),
}
# what anonymised files leave out although it may only be empty
BLANK = ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
         "StudyTime", "ReferringPhysicianName")  # fmt: skip
UNKNOWN = ("85756007", "Tissue")  # as viewers call a segment of no known kind


def hindrance(file: Path) -> str:
    """Why the series of a slice gets no such object; "" if it can."""
    if importlib.util.find_spec(PACKAGE) is None:
        return f"pip install {PACKAGE} to get DICOM Segmentations, too"
    if not pydicom.dcmread(file, specific_tags=["FrameOfReferenceUID"], force=True).get("FrameOfReferenceUID"):
        return "its slices name no frame of reference, so it gets no DICOM Segmentation"
    return ""


def write_segmentation(
    file: Path, slices: Sequence[Path], labels: np.ndarray, names: Mapping[int, str], method: str, checkpoint: str
) -> None:
    """Write labels as a DICOM Segmentation; it appears whole or not at all.

    Args:
        slices: files of the series in the order of the slices.
        labels: `(D, H, W)`, ids of `names` and 0, on the rows and columns of the files.
        names: id -> name of a segment; they are numbered in this order.
        method, checkpoint: what found them, and which of its versions.

    Raises:
        UserError: the series lacks what such an object must repeat, such as its frame of reference.
    """
    from highdicom.seg import Segmentation

    images = [_header(path) for path in slices]
    _add_thickness(images)
    masks = np.zeros(labels.shape, np.uint8)
    for place, identifier in enumerate(names, start=1):
        masks[labels == identifier] = place
    made = [*(str(image.SOPInstanceUID) for image in images), checkpoint, hashlib.sha256(masks).hexdigest()]
    try:
        content = Segmentation(
            source_images=images,
            pixel_array=masks,
            segmentation_type="BINARY",
            segment_descriptions=[
                _description(place, name, method, checkpoint) for place, name in enumerate(names.values(), start=1)
            ],
            series_instance_uid=generate_uid(entropy_srcs=["series", *made]),
            series_number=int(images[0].get("SeriesNumber") or 0) + 1000,
            sop_instance_uid=generate_uid(entropy_srcs=["instance", *made]),
            instance_number=1,
            manufacturer="fsmis",
            manufacturer_model_name=method[:64],
            software_versions=__version__,
            device_serial_number=checkpoint[:64],
            content_label="SEGMENTATION",
            series_description=f"Segmentation, {method}"[:64],
        )
    except (AttributeError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{slices[0].parent}: its headers do not suffice for a DICOM Segmentation ({error}); leave it out with "
            "--no-dicom"
        ) from error
    content.SpecificCharacterSet = "ISO_IR 192"  # names in any language
    with whole_file(file) as temporary:
        content.save_as(temporary, enforce_file_format=True)


def _header(file: Path) -> pydicom.Dataset:
    """The header of a slice, with the elements of patient and study that may be empty, but must be there."""
    image = pydicom.dcmread(file, stop_before_pixels=True, force=True)
    for name in BLANK:
        if name not in image:
            setattr(image, name, "")
    return image


def _add_thickness(images: Sequence[pydicom.Dataset]) -> None:
    """Where the headers do not say how thick a slice is, the distance of two of them stands in."""
    if len(images) > 1:
        first, second = (np.array(image.ImagePositionPatient, float) for image in images[:2])
        for image in (image for image in images if not image.get("SliceThickness")):
            image.SliceThickness = round(float(np.linalg.norm(second - first)), 4)


def _description(place: int, name: str, method: str, checkpoint: str):
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from pydicom.sr.codedict import codes
    from pydicom.sr.coding import Code

    side, _, rest = name.partition(" ")
    code, side = (CODES[rest], SIDES[side]) if side in SIDES and rest in CODES else (CODES.get(name, UNKNOWN), None)
    description = SegmentDescription(
        segment_number=place,
        segment_label=name.encode("utf-8", "replace").decode()[:64],
        segmented_property_category=Code(KIND[0], "SCT", KIND[1]),
        segmented_property_type=Code(code[0], "SCT", code[1]),
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=f"fsmis {method}"[:64],
            version=f"{__version__}, checkpoint {checkpoint}"[:64],
            family=codes.DCM.ArtificialIntelligence,
        ),
        display_color=CIELabColor.from_string(colour(place - 1)),
    )
    if side:
        modifier = pydicom.Dataset()
        modifier.CodeValue, modifier.CodingSchemeDesignator, modifier.CodeMeaning = side[0], "SCT", side[1]
        description.SegmentedPropertyTypeCodeSequence[0].SegmentedPropertyTypeModifierCodeSequence = [modifier]
    return description
