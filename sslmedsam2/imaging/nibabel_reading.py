"""NIfTI and Analyze pairs (.hdr, .img), FreeSurfer (.mgz, .mgh) and Philips (.par, .rec) images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from sslmedsam2.errors import InputError
from sslmedsam2.imaging.geometry import LPS_FROM_RAS, geometry_from_steps
from sslmedsam2.imaging.stored import check_voxel_type, image_error, repair, spatial_shape_zyx
from sslmedsam2.imaging.volume import Source, Volume
from sslmedsam2.imaging.voxel_data import LARGEST_DEFLATE_RATIO, truncated


def read_by_nibabel(path: Path) -> Volume:
    """Read an image of one of these formats.

    Raises InputError: of kind ``unreadable_header``, ``missing_data_file``, ``truncated_data`` or
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
        reason = f"the data file {data.name!r} of the header is not there"
        raise image_error(path, "missing_data_file", reason)
    if dtype.itemsize * math.prod(native_shape) > data.stat().st_size * LARGEST_DEFLATE_RATIO:
        raise truncated(path)
    lps = LPS_FROM_RAS * affine[:3]
    geometry, repairs = geometry_from_steps(
        path, shape_zyx=shape_zyx, steps_xyz_mm=lps[:, :3], origin_xyz_mm=lps[:, 3]
    )
    try:
        voxels = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:
        raise _unreadable(path, error, kind="unreadable_data", what="the voxels") from error
    is_analyze = isinstance(image, nib.AnalyzeImage) and not isinstance(image, nib.Nifti1Pair)
    # SPM keeps the affine in a file beside the pair.
    if is_analyze and not path.with_suffix(".mat").is_file():
        repairs += (repair("no_orientation", "Analyze files do not say how the patient lies"),)
    voxels = np.ascontiguousarray(voxels.reshape(shape_zyx[::-1]).transpose())
    return Volume(voxels, geometry, Source(path, native_shape, dtype), repairs)


def _unreadable(path: Path, error: Exception, *, kind: str, what: str) -> InputError:
    text = " ".join(str(error).split())[:120] or type(error).__name__
    return InputError(
        path,
        kind=kind,
        reason=f"{what} cannot be read ({text})",
        remedy="Copy the file again with its partner, or convert it to .nii.gz",
    )
