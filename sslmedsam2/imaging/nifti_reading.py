"""NIfTI files: their header and float32 voxels.

NIfTI stores x fastest, which is the memory order of a ``[z, y, x]`` array: nothing is transposed.
"""

from __future__ import annotations

import bz2
import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sslmedsam2.imaging.nifti_header import MAX_HEADER_BYTES, NiftiHeader, parse_nifti_header
from sslmedsam2.imaging.stored import StoredImage, repair, unreadable_header
from sslmedsam2.imaging.volume import MaskVolume, Source
from sslmedsam2.imaging.voxel_data import (
    LARGEST_DEFLATE_RATIO,
    damaged,
    read_voxels,
    refuse_impossible_size,
)

_BZIP2_MAGIC = b"BZh"
# Of a header, in bytes; what lies before the voxels has to be inflated too.
_LARGEST_EXTENSIONS = 2**26
_GZIP_MAGIC = b"\x1f\x8b"


def read_nifti(path: Path, *, extension: str) -> StoredImage:
    """Read a single-file NIfTI image, plain or gzipped, whichever its content is.

    Raises
    ------
    InputError
        As :func:`parse_nifti_header`, and of kind ``truncated_data`` or ``corrupt_data``.
    """
    with path.open("rb") as file:
        stream, is_gzip = _decompressed(file)
        header = _parsed(path, stream)
        announced = header.data_offset + header.dtype.itemsize * math.prod(header.native_shape)
        stored, ratio = path.stat().st_size, LARGEST_DEFLATE_RATIO if is_gzip else 1
        is_far = header.data_offset > _LARGEST_EXTENSIONS
        try:
            if isinstance(stream, bz2.BZ2File) and not is_far:
                # Runs of one value shrink without bound: only decompressing tells the size.
                stored = stream.seek(announced)
            refuse_impossible_size(path, announced=announced, stored=stored, ratio=ratio)
            if is_far:
                reason = f"the header says that the voxels begin at byte {header.data_offset}"
                raise unreadable_header(path, reason)
            stream.seek(header.data_offset)
        except (EOFError, zlib.error, OSError) as error:
            raise damaged(path, error) from error
        voxels, trailing = read_voxels(
            path,
            stream,
            shape_zyx=header.geometry.shape_zyx,
            dtype=header.dtype,
            slope=header.slope,
            intercept=header.intercept,
        )
    repairs = header.repairs
    if is_gzip != (extension == ".nii.gz"):
        content = "gzipped" if is_gzip else "not gzipped"
        repairs += (repair("misnamed", f"the file is {content}, though it is named {extension}"),)
    if trailing:
        note = "bytes after the end of the compressed data were ignored; its checksum is right"
        repairs += (repair("trailing_bytes", note),)
    return StoredImage(voxels, header.geometry, _source(path, header), repairs)


def read_nifti_grid(path: Path) -> MaskVolume:
    """Read the header alone and return an empty mask on the image's grid.

    Raises
    ------
    InputError
        As :func:`parse_nifti_header`, and of kind ``truncated_data`` or ``corrupt_data`` if not
        even the header can be read.
    """
    with path.open("rb") as file:
        header = _parsed(path, _decompressed(file)[0])
    return MaskVolume(
        array_zyx=np.zeros(header.geometry.shape_zyx, np.uint8),
        geometry=header.geometry,
        source=_source(path, header),
        repairs=header.repairs,
    )


def _parsed(path: Path, stream: BinaryIO) -> NiftiHeader:
    try:
        start = stream.read(MAX_HEADER_BYTES)
    except (EOFError, zlib.error, OSError) as error:
        raise damaged(path, error) from error
    return parse_nifti_header(path, start)


def _decompressed(file: BinaryIO) -> tuple[BinaryIO, bool]:
    """Return a stream of the file's content, and whether the file is gzipped."""
    start = file.read(3)
    is_gzip = start[:2] == _GZIP_MAGIC
    file.seek(0)
    if start == _BZIP2_MAGIC:
        return cast(BinaryIO, bz2.BZ2File(file)), False
    if not is_gzip:
        return file, False
    return cast(BinaryIO, gzip.GzipFile(fileobj=file, mode="rb")), True


def _source(path: Path, header: NiftiHeader) -> Source:
    return Source(
        path=path,
        native_shape=header.native_shape,
        native_dtype=header.dtype,
        nifti_header=header.raw,
    )
