"""NIfTI files whose header repeats that of their image."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sslmedsam2.imaging.geometry import affine_ras
from sslmedsam2.imaging.nifti_header import (
    NiftiStruct,
    nifti_struct,
    set_voxel_type,
    voxel_type,
)
from sslmedsam2.imaging.volume import Geometry, Source

_SCANNER_CODE = 1
_EXTENSION_FLAG_BYTES = 4
# As quick as level 1 on masks and a little smaller; from level 4 on zlib takes twice as long.
_GZIP_LEVEL = 3


def nifti_header(
    geometry: Geometry,
    source: Source,
    *,
    dtype: np.dtype,
    description: str,
    display_range: tuple[float, float],
) -> NiftiStruct:
    """Build the header of a mask or map that lies on the grid of ``source``.

    From a NIfTI source every field that places the voxels is taken bit for bit; only voxel sizes
    that no reader could use are replaced. From another format sform and qform are both set, with
    the code of scanner coordinates.
    """
    if source.nifti_header is None:
        header = _header_from_geometry(geometry, source)
    else:
        header = nifti_struct(source.path, source.nifti_header)
    sizes = header["pixdim"][1:4]
    if not (np.isfinite(sizes).all() and (sizes > 0).all()):
        header["pixdim"][1:4] = geometry.spacing_zyx_mm[::-1]
    # A length of 0 stands for an axis that is not used; not every reader knows that.
    header["dim"][1:][header["dim"][1:] == 0] = 1
    set_voxel_type(header, dtype)
    header["vox_offset"] = header.itemsize + _EXTENSION_FLAG_BYTES
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["cal_min"], header["cal_max"] = display_range
    header["descrip"] = description
    # What described the image's own values does not describe the mask's.
    header["intent_code"], header["intent_name"], header["aux_file"] = 0, b"", b""
    header["intent_p1"], header["intent_p2"], header["intent_p3"] = 0, 0, 0
    return header


def _header_from_geometry(geometry: Geometry, source: Source) -> NiftiStruct:
    # For the quaternion of a rotation; from one NIfTI file to another it is not needed.
    import nibabel as nib

    header = nib.Nifti1Header()
    header.set_data_shape(source.native_shape)
    affine = affine_ras(geometry)
    header.set_qform(affine, code=_SCANNER_CODE)
    header.set_sform(affine, code=_SCANNER_CODE)
    header.set_xyzt_units("mm")
    return nifti_struct(source.path, header.binaryblock)


def write_nifti(array_zyx: np.ndarray, *, header: NiftiStruct, path: Path, compress: bool) -> None:
    """Write voxels whose type is the header's; the same voxels always give the same bytes."""
    voxels = np.ascontiguousarray(array_zyx, dtype=voxel_type(path, header))
    with path.open("wb") as file:
        if not compress:
            _write_stream(file, header, voxels)
            return
        # Neither a name nor a time in the gzip header, so that equal masks are equal files.
        with gzip.GzipFile(
            filename="", mode="wb", fileobj=file, compresslevel=_GZIP_LEVEL, mtime=0
        ) as stream:
            _write_stream(cast(BinaryIO, stream), header, voxels)


def _write_stream(stream: BinaryIO, header: NiftiStruct, voxels: np.ndarray) -> None:
    stream.write(header.tobytes())
    stream.write(bytes(_EXTENSION_FLAG_BYTES))
    stream.write(voxels.view(np.uint8).data)
