"""DICOM in and out: which volumes a tree of files holds, their voxels, and masks as DICOM-SEG."""
