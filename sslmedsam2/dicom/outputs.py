"""Paths of DICOM-SEG objects in the output folder."""

from __future__ import annotations

from pathlib import Path

from sslmedsam2.contract.outputs import GENERIC_SUFFIX
from sslmedsam2.imaging.image_file import ImageFile

SEG_FOLDER = "dicom_seg"


def seg_path(output_dir: Path, series: ImageFile) -> Path:
    """Return ``dicom_seg/<Case>/<MOD>_seg.dcm``, or ``dicom_seg/<case>_liver.dcm`` without MOD."""
    folder = output_dir / SEG_FOLDER
    if series.sequence is None:
        return folder / f"{series.case}{GENERIC_SUFFIX}.dcm"
    return folder / series.case / f"{series.sequence}_seg.dcm"
