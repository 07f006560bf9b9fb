"""NIfTI and Analyze pairs (.hdr, .img), FreeSurfer (.mgz, .mgh) and Philips (.par, .rec) images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import LPS_FROM_RAS, geometry_from_steps
from sslmedsam2.imaging.stored import (
    StoredImage,
    check_voxel_type,
    missing_data_file,
    repair,
    spatial_shape_zyx,
)
from sslmedsam2.imaging.volume import Source
from sslmedsam2.imaging.voxel_data import LARGEST_DEFLATE_RATIO, refuse_impossible_size


def read_by_nibabel(path: Path) -> StoredImage:
    """Read an image of one of these formats.

    Raises
    ------
    InputError
        Of kind ``unreadable_header``, ``missing_data_file``, ``truncated_data`` or
        ``unreadable_data``, or of a kind of ``stored.py`` or ``geometry.py``.
    """
    try:
        image: Any = nib.load(path)
        native_shape = tuple(int(length) for length in image.shape)
        affine = np.asarray(image.affine, dtype=np.float64)
        dtype = image.get_data_dtype()
    # A damaged header makes nibabel fail in many ways.
    except Exception as error:
        raise _unreadable(path, error, kind="unreadable_header", what="the header") from error
    shape_zyx = spatial_shape_zyx(path, native_shape)
    check_voxel_type(path, dtype)
    data = Path(image.file_map["image"].filename)
    if not data.is_file():
        raise missing_data_file(path, data.name)
    refuse_impossible_size(
        path,
        announced=dtype.itemsize * math.prod(native_shape),
        stored=data.stat().st_size,
        ratio=LARGEST_DEFLATE_RATIO,
    )
    lps = LPS_FROM_RAS * affine[:3]
    geometry, repairs = geometry_from_steps(
        path, shape_zyx=shape_zyx, steps_xyz_mm=lps[:, :3], origin_xyz_mm=lps[:, 3]
    )
    try:
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise _unreadable(path, error, kind="unreadable_data", what="the voxels") from error
    if type(image) in (nib.AnalyzeImage, nib.Spm99AnalyzeImage):
        repairs += (repair("no_orientation", "Analyze files do not say how the patient lies"),)
    return StoredImage(
        np.ascontiguousarray(voxels.reshape(shape_zyx[::-1]).transpose()),
        geometry,
        Source(path=path, native_shape=native_shape, native_dtype=dtype, nifti_header=None),
        repairs,
    )


def _unreadable(path: Path, error: Exception, *, kind: str, what: str) -> InputError:
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return InputError(
        path,
        kind=kind,
        reason=f"{what} cannot be read ({text})",
        remedy="Copy the file again with its partner, or convert it to .nii.gz",
    )
