"""DICOM input and output: find volumes in files, read voxels, write masks as DICOM-SEG."""
