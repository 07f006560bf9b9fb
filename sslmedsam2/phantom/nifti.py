"""Write phantom volumes as NIfTI files whose bytes do not depend on the time of writing."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import numpy.typing as npt

from sslmedsam2.imaging.atomic import write_bytes_atomic
from sslmedsam2.imaging.volume import Geometry

_LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_SCANNER = 1


def write_nifti(
    path: Path,
    array_zyx: npt.NDArray[np.generic],
    *,
    grid: Geometry,
    dtype: type[np.generic],
    trailing_axis: bool = False,
) -> None:
    """Write an array as ``.nii.gz``, rounded to whole numbers.

    Parameters
    ----------
    path
        Where to; missing folders are made.
    array_zyx
        The voxels, ``[z, y, x]``.
    grid
        Where they lie.
    dtype
        The stored type.
    trailing_axis
        Store the shape (X, Y, Z, 1) rather than (X, Y, Z), as some exporters do.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    import nibabel as nib

    voxels = np.rint(array_zyx).astype(dtype).transpose(2, 1, 0)
    if trailing_axis:
        voxels = voxels[..., None]
    image = nib.Nifti1Image(voxels, _affine(grid))
    image.header.set_xyzt_units("mm")
    image.set_qform(image.affine, code=_SCANNER)
    image.set_sform(image.affine, code=_SCANNER)
    image.header["descrip"] = b"synthetic phantom"
    write_bytes_atomic(path, gzip.compress(image.to_bytes(), compresslevel=9, mtime=0))


def _affine(grid: Geometry) -> npt.NDArray[np.float64]:
    """The RAS affine of NIfTI for an LPS grid."""
    affine = np.eye(4)
    affine[:3, :3] = grid.direction_xyz * np.asarray(grid.spacing_zyx_mm)[::-1]
    affine[:3, 3] = grid.origin_xyz_mm
    return _LPS_TO_RAS @ affine
