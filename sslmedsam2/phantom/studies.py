"""Folders of phantoms: the included test inputs, and labelled training cases."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.atomic import atomic_path, write_text_atomic
from sslmedsam2.imaging.nifti_writing import nifti_header, write_nifti
from sslmedsam2.imaging.records import move_aside
from sslmedsam2.imaging.volume import Geometry, Source
from sslmedsam2.phantom.anatomy import make_anatomy
from sslmedsam2.phantom.rendering import axial_grid, render_sequence

logger = logging.getLogger(__name__)

_README = """\
Synthetic test inputs
=====================
Every volume here is computed: analytic abdomens scanned by a simulated MRI. No patient data.

images/      input in the layout of the LiSeg challenge; give this folder to `predict`
references/  the true liver masks, <Case>/mask_<SEQUENCE>.nii.gz; give this folder to `evaluate`

Between them the four cases hold one 4-D file (0001-A GED4), left-handed files (0002-B1), oblique
float32 files (0003-B2), missing sequences and three spellings of the vendor folder.

Regenerate with:  sslmedsam2 phantom --output test_inputs
"""

_VENDORS = ("A", "B1", "B2")
_INFO_ORDER = ("T1", "T2", "DWI_800", "GED1", "GED2", "GED3", "GED4")

# Directions of the stored axes x, y and z, as columns in LPS.
_LPS = np.diag([1.0, 1.0, 1.0])
_LAS = np.diag([1.0, -1.0, 1.0])
_RAS = np.diag([-1.0, -1.0, 1.0])


@dataclass(frozen=True)
class Scan:
    """How one sequence of a case is scanned and stored.

    ``trailing_axis``: the stored shape is (X, Y, Z, 1), as some exporters write it.
    """

    sequence: str
    shape_zyx: tuple[int, int, int]
    spacing_zyx_mm: tuple[float, float, float]
    direction_xyz: npt.NDArray[np.float64]
    dtype: type[np.generic] = np.int16
    trailing_axis: bool = False

    def grid(self) -> Geometry:
        """The voxel grid, centred on the liver."""
        return axial_grid(
            shape_zyx=self.shape_zyx,
            spacing_zyx_mm=self.spacing_zyx_mm,
            direction_xyz=self.direction_xyz,
        )


@dataclass(frozen=True)
class Case:
    """One synthetic patient: the folder of its vendor, its name and its scans."""

    vendor_folder: str
    name: str
    seed: int
    scans: tuple[Scan, ...]


def example_cases() -> tuple[Case, ...]:
    """The four cases of ``test_inputs``; together they show the input forms met in practice."""
    t2 = ((30, 104, 132), (7.7, 2.5, 2.5))
    t1 = ((32, 112, 140), (7.0, 2.4, 2.4))
    dwi = ((34, 96, 120), (6.6, 2.8, 2.8))
    ged4 = ((36, 108, 136), (6.1, 2.4, 2.4))
    tilted = _tilt(about_x_deg=8.0, about_z_deg=5.0) @ _RAS
    return (
        Case(
            "Vendor-A",
            "0001-A",
            11,
            (
                Scan("T1", *t1, _LPS),
                Scan("T2", *t2, _LPS),
                Scan("DWI_800", *dwi, _LPS),
                Scan("GED4", *ged4, _LPS, trailing_axis=True),
            ),
        ),
        Case(
            "Vendor_B1",
            "0002-B1",
            12,
            (Scan("T2", *t2, _LAS), Scan("DWI_800", *dwi, _LAS), Scan("GED4", *ged4, _LAS)),
        ),
        Case(
            "VendorB2",
            "0003-B2",
            13,
            (
                Scan("T1", *t1, tilted, dtype=np.float32),
                Scan("GED4", *ged4, tilted, dtype=np.float32),
            ),
        ),
        Case("Vendor-C", "0004-C", 14, (Scan("T2", *t2, _RAS), Scan("GED4", *ged4, _RAS))),
    )


def write_test_inputs(folder: Path) -> None:
    """Write the four example cases, their references, ``info.csv`` and a README.

    Raises OutputError: a file cannot be written.
    """
    cases = example_cases()
    for case in cases:
        write_case(
            case,
            image_folder=folder / "images" / case.vendor_folder / case.name,
            mask_folder=folder / "references" / case.name,
        )
    texts = {folder / "images" / "info.csv": _info_csv(cases), folder / "README.txt": _README}
    for path, text in texts.items():
        if path.exists() and path.read_bytes() != text.encode("utf-8"):
            move_aside(path, why="it is not of these phantoms")
        write_text_atomic(path, text)


def write_training_cases(
    folder: Path, *, cases: int, labelled: int, seed: int, scans: Sequence[Scan] | None = None
) -> None:
    """Write cases as a training release has them: masks beside the images of the first few.

    Parameters
    ----------
    folder
        Gets ``<vendor>/<case>/<SEQ>.nii.gz`` and, for labelled cases, ``mask_<SEQ>.nii.gz``.
    cases, labelled
        How many cases, and how many of them (the first ones) get masks.
    seed
        Of the first case; the others count on from it.
    scans
        What every case holds; by default T1, T2, DWI_800 and GED4 as in the test inputs.

    Raises OutputError: a file cannot be written.
    """
    for index in range(cases):
        vendor = _VENDORS[index % len(_VENDORS)]
        case = Case(
            vendor_folder=f"Vendor_{vendor}",
            name=f"{1001 + index}-{vendor}-S{index % 4 + 1}",
            seed=seed + index,
            scans=tuple(scans) if scans is not None else example_cases()[0].scans,
        )
        home = folder / case.vendor_folder / case.name
        write_case(case, image_folder=home, mask_folder=home if index < labelled else None)


def write_case(case: Case, *, image_folder: Path, mask_folder: Path | None) -> None:
    """Write a case's scans, and their masks where ``mask_folder`` is given.

    Raises OutputError: a file cannot be written.
    """
    anatomy = make_anatomy(case.seed)
    for scan in case.scans:
        grid = scan.grid()
        image, mask = render_sequence(anatomy, scan.sequence, grid=grid, seed=case.seed)
        _write(image, image_folder / f"{scan.sequence}.nii.gz", grid, scan, scan.dtype)
        if mask_folder is not None:
            _write(mask, mask_folder / f"mask_{scan.sequence}.nii.gz", grid, scan, np.uint8)
    logger.info("wrote phantom %s", case.name)


def _write(
    array_zyx: npt.NDArray[np.generic],
    path: Path,
    grid: Geometry,
    scan: Scan,
    dtype: type[np.generic],
) -> None:
    """Write an array, rounded to whole numbers, as the scan is stored."""
    voxels = np.rint(array_zyx).astype(dtype)
    native_shape = (*reversed(grid.shape_zyx), *([1] if scan.trailing_axis else []))
    header = nifti_header(
        grid,
        Source(path, native_shape, voxels.dtype),
        dtype=voxels.dtype,
        description="synthetic phantom",
        display_range=(0, 0),
    )
    with atomic_path(path) as partial:
        write_nifti(voxels, header=header, path=partial, compress=True)


def _tilt(*, about_x_deg: float, about_z_deg: float) -> npt.NDArray[np.float64]:
    """A rotation in LPS: first about x (a tilted slice stack), then about z."""
    a, c = np.radians(about_x_deg), np.radians(about_z_deg)
    about_x = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    about_z = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    return about_z @ about_x


def _info_csv(cases: Sequence[Case]) -> str:
    """The challenge's table of cases: name, vendor and missing sequences."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["Case", "Vendor", "Missing Modality"])
    for case in cases:
        present = {scan.sequence for scan in case.scans}
        missing = [name for name in _INFO_ORDER if name not in present]
        table.writerow([case.name, case.name.split("-")[1], ";".join(missing)])
    return text.getvalue()
