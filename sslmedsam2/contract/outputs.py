"""Paths and names in the output folder of ``predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from sslmedsam2.contract.names import unsafe_reason
from sslmedsam2.errors import OutputError

PREDICTION_FOLDER = "LiSeg_pred"
PREVIEW_FOLDER = "previews"
REPORT_NAME = "run_report.json"
PREDICTION_SUFFIX = "_pred"
GENERIC_SUFFIX = "_liver"
MASK_EXTENSION = ".nii.gz"


class NamedSeries(Protocol):
    """The fields of a series that decide the name of its result."""

    @property
    def case(self) -> str:
        """The case's name."""

    @property
    def sequence(self) -> str | None:
        """The canonical sequence name; None outside the challenge's layout."""


def mask_path(output_dir: Path, series: NamedSeries) -> Path:
    """Return ``LiSeg_pred/<Case>/<MOD>_pred.nii.gz``, or ``<case>_liver.nii.gz`` without MOD.

    Raises
    ------
    OutputError
        The case name would lead out of the output folder or is no valid file name.
    """
    case = _checked(series.case)
    if series.sequence is None:
        return output_dir / f"{case}{GENERIC_SUFFIX}{MASK_EXTENSION}"
    name = f"{series.sequence}{PREDICTION_SUFFIX}{MASK_EXTENSION}"
    return output_dir / PREDICTION_FOLDER / case / name


def preview_path(output_dir: Path, series: NamedSeries) -> Path:
    """Return ``previews/<Case>_<MOD>.png``, or ``previews/<case>_liver.png`` without MOD.

    Raises
    ------
    OutputError
        As for `mask_path`.
    """
    suffix = GENERIC_SUFFIX if series.sequence is None else f"_{series.sequence}"
    return output_dir / PREVIEW_FOLDER / f"{_checked(series.case)}{suffix}.png"


def report_path(output_dir: Path) -> Path:
    """Return the path of ``run_report.json``."""
    return output_dir / REPORT_NAME


def _checked(case: str) -> str:
    reason = unsafe_reason(case)
    if reason:
        raise OutputError(f"case {case!r}", reason=f"the name {reason}", remedy="Rename the case")
    return case
