"""DICOM: one file (`header`), slices on each other (`stack`), their values (`volume`), all below a folder (`tree`)."""

from dataloaders.raw.dicom.tree import find_series, name_series, remarks
from dataloaders.raw.dicom.volume import read_series

__all__ = ["find_series", "name_series", "read_series", "remarks"]
