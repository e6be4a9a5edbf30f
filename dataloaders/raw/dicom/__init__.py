"""DICOM: one file (`header`), slices on each other (`stack`), their values (`volume`), all below a folder (`tree`)."""

from dataloaders.raw.dicom.tree import Series, find_series, name_series, remarks
from dataloaders.raw.dicom.volume import read_series

__all__ = ["Series", "find_series", "name_series", "read_series", "remarks"]
