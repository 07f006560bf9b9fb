"""Paths and names in the output folder of ``predict``."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Final, Literal

from sslmedsam2 import __version__
from sslmedsam2.contract.names import split_volume_name, unsafe_reason
from sslmedsam2.errors import OutputError
from sslmedsam2.imaging.atomic import write_bytes_atomic
from sslmedsam2.imaging.image_file import ImageFile

PREDICTION_FOLDER = "LiSeg_pred"
PREVIEW_FOLDER = "previews"
SEG_FOLDER = "dicom_seg"
MAP_FOLDER = "maps"
PAGE_FOLDER = "report"
RUN_FOLDERS = (PREDICTION_FOLDER, PREVIEW_FOLDER, MAP_FOLDER, SEG_FOLDER, PAGE_FOLDER)
"""The folders that a run writes into its output folder."""
REPORT_NAME = "run_report.json"
PREDICTION_SUFFIX = "_pred"
GENERIC_SUFFIX = "_liver"
MASK_EXTENSION = ".nii.gz"
DEFAULT_SLUG = "liver-segmentation"
"""Of the output socket on grand-challenge.org."""


Layout = Literal["challenge", "bids", "grand-challenge"]
"""Where masks go: ``LiSeg_pred/<Case>/<MOD>_pred``, BIDS derivatives, or an output socket of
grand-challenge.org."""

_BIDS_STEM: Final = re.compile(r"((sub-[^_]+)(?:_(ses-[^_]+))?(?:_[a-z]+-[^_]+)*)_([0-9A-Za-z]+)")


def mask_path(output_dir: Path, series: ImageFile) -> Path:
    """Return ``LiSeg_pred/<Case>/<MOD>_pred.nii.gz``, or ``<case>_liver.nii.gz`` without MOD.

    Raises OutputError: the case name would lead out of the output folder or is no valid file name.
    """
    case = checked_case(series.case)
    if series.sequence is None:
        return output_dir / f"{case}{GENERIC_SUFFIX}{MASK_EXTENSION}"
    return output_dir / PREDICTION_FOLDER / case / prediction_name(series.sequence)


def prediction_name(sequence: str) -> str:
    """Return ``<MOD>_pred.nii.gz``."""
    return f"{sequence}{PREDICTION_SUFFIX}{MASK_EXTENSION}"


def bids_path(output_dir: Path, series: ImageFile) -> Path:
    """Return ``sub-<label>/[ses-<label>/]anat/<entities>_label-liver_desc-<suffix>_mask.nii.gz``.

    The entities and the suffix are those of the image's name; an image that is not named after
    BIDS gives its case to ``sub-`` and its sequence to ``desc-``.

    Raises OutputError: as for `mask_path`.
    """
    stem = split_volume_name(series.path.name)
    match = _BIDS_STEM.fullmatch(stem[0] if stem else "")
    if match:
        entities, subject, session, suffix = match.groups()
    else:
        subject = entities = f"sub-{re.sub('[^0-9A-Za-z]', '', checked_case(series.case)) or 'x'}"
        session, suffix = None, (series.sequence or "").replace("_", "")
    folder = output_dir.joinpath(*filter(None, (subject, session)), "anat")
    described = f"_desc-{suffix}" if suffix else ""
    return folder / f"{entities}_label-liver{described}_mask{MASK_EXTENSION}"


def write_bids_description(output_dir: Path) -> None:
    """Write ``dataset_description.json``, which BIDS asks of derivatives; raises OutputError.

    An existing file is not changed.
    """
    path = output_dir / "dataset_description.json"
    if path.exists():
        return
    made_by = {"Name": "SSL-MedSAM2", "Version": __version__}
    description = {
        "Name": "Liver masks",
        "BIDSVersion": "1.10.0",
        "DatasetType": "derivative",
        "GeneratedBy": [made_by],
    }
    write_bytes_atomic(path, json.dumps(description, indent=2).encode())


def socket_path(output_dir: Path, series: ImageFile, *, slug: str) -> Path:
    """Return ``images/<slug>/<case>[_<MOD>].mha``, an output socket; raises as `mask_path`."""
    name = "_".join(filter(None, (checked_case(series.case), series.sequence)))
    return output_dir / "images" / slug / f"{name}.mha"


def seg_path(output_dir: Path, series: ImageFile) -> Path:
    """Return ``dicom_seg/<Case>/<MOD>_seg.dcm``, or ``dicom_seg/<case>_liver.dcm`` without MOD."""
    folder = output_dir / SEG_FOLDER
    if series.sequence is None:
        return folder / f"{series.case}{GENERIC_SUFFIX}.dcm"
    return folder / series.case / f"{series.sequence}_seg.dcm"


def preview_path(output_dir: Path, series: ImageFile) -> Path:
    """Return ``previews/<Case>_<MOD>.png``, or ``<case>_liver.png``; raises as `mask_path`."""
    suffix = GENERIC_SUFFIX if series.sequence is None else f"_{series.sequence}"
    return output_dir / PREVIEW_FOLDER / f"{checked_case(series.case)}{suffix}.png"


def map_path(output_dir: Path, series: ImageFile, *, kind: str) -> Path:
    """Return ``maps/<kind>_<Case>_<MOD>.nii.gz``; raises as `mask_path`.

    ``kind`` is probability or uncertainty.
    """
    stem = preview_path(output_dir, series).stem
    return output_dir / MAP_FOLDER / f"{kind}_{stem}{MASK_EXTENSION}"


def report_path(output_dir: Path) -> Path:
    """Return the path of ``run_report.json``."""
    return output_dir / REPORT_NAME


def checked_case(case: str) -> str:
    """Return a case name; raises OutputError if it is no valid file name."""
    reason = unsafe_reason(case)
    if reason:
        raise OutputError(f"case {case!r}", reason=f"the name {reason}", remedy="Rename the case")
    return case
