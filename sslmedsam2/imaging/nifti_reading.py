"""NIfTI files: their header and float32 voxels.

NIfTI stores x fastest, which is the memory order of a ``[z, y, x]`` array: nothing is transposed.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np

from sslmedsam2.imaging.nifti_header import MAX_HEADER_BYTES, NiftiHeader, parse_nifti_header
from sslmedsam2.imaging.stored import repair
from sslmedsam2.imaging.volume import MaskVolume, Volume
from sslmedsam2.imaging.voxel_data import (
    Compression,
    damage_as_input_error,
    decompressed,
    read_voxels,
)


def read_nifti(path: Path, *, extension: str) -> Volume:
    """Read a single-file NIfTI image, plain or compressed, whichever its content is.

    Raises InputError: as :func:`parse_nifti_header`, and of kind ``truncated_data`` or
    ``corrupt_data``.
    """
    with path.open("rb") as file:
        header, compression = _read_header(path, file)
        voxels, has_trailing_bytes = read_voxels(
            path,
            file,
            shape_zyx=header.geometry.shape_zyx,
            dtype=header.source.native_dtype,
            compression=compression,
            skip=header.data_offset,
            slope=header.slope,
            intercept=header.intercept,
        )
    repairs = header.repairs
    if (compression == "gzip") != (extension == ".nii.gz"):
        content = "gzipped" if compression == "gzip" else "not gzipped"
        repairs += (repair("misnamed", f"the file is {content}, though it is named {extension}"),)
    if has_trailing_bytes:
        note = "bytes after the end of the compressed data were ignored; its checksum is right"
        repairs += (repair("trailing_bytes", note),)
    return Volume(voxels, header.geometry, header.source, repairs)


def read_nifti_grid(path: Path) -> MaskVolume:
    """Read the header alone and return an empty mask on the image's grid.

    Raises InputError: as :func:`parse_nifti_header`, and of kind ``truncated_data`` or
    ``corrupt_data`` if not even the header can be read.
    """
    with path.open("rb") as file:
        header, _ = _read_header(path, file)
    empty = np.zeros(header.geometry.shape_zyx, np.uint8)
    return MaskVolume(empty, header.geometry, header.source, header.repairs)


def _read_header(path: Path, file: BinaryIO) -> tuple[NiftiHeader, Compression]:
    start, compression = read_nifti_start(path, file)
    return parse_nifti_header(path, start), compression


def read_nifti_start(path: Path, file: BinaryIO) -> tuple[bytes, Compression]:
    """Return the bytes that hold the header of an open file, and how the file is compressed.

    Raises InputError: of kind ``truncated_data`` or ``corrupt_data``.
    """
    start = file.read(3)
    compression: Compression = ""
    if start == b"BZh":
        compression = "bzip2"
    elif start[:2] == b"\x1f\x8b":
        compression = "gzip"
    file.seek(0)
    with damage_as_input_error(path):
        start = decompressed(file, compression).read(MAX_HEADER_BYTES)
    return start, compression
