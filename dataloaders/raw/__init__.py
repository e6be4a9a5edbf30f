"""Reading raw scans (NIfTI, DICOM) and bringing them to a data set's grid and intensities."""
