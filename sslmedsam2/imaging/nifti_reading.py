"""NIfTI files to float32 voxels, in parts.

The voxels are decompressed, converted and scaled in small parts directly into the final array, so
reading needs the float32 volume and little more, whatever the stored type. NIfTI stores x
fastest, which is the memory order of a ``[z, y, x]`` array: nothing is transposed.
"""

from __future__ import annotations

import bz2
import gzip
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np

from sslmedsam2.imaging.nifti_header import MAX_HEADER_BYTES, NiftiHeader, parse_nifti_header
from sslmedsam2.imaging.stored import StoredImage, corrupt, repair, truncated
from sslmedsam2.imaging.volume import ArrayZYX, MaskVolume, Source

_BZIP2_MAGIC = b"BZh"
_GZIP_MAGIC = b"\x1f\x8b"
_LARGEST_GZIP_RATIO = 1032
_PART_VOXELS = 2**18


def read_nifti(path: Path, *, extension: str) -> StoredImage:
    """Read a single-file NIfTI image, plain or gzipped, whichever its content is.

    Raises
    ------
    InputError
        As :func:`parse_nifti_header`, and of kind ``truncated_data`` or ``corrupt_data``.
    """
    with path.open("rb") as file:
        stream, is_gzip = _decompressed(file)
        try:
            header = parse_nifti_header(path, stream.read(MAX_HEADER_BYTES))
            _refuse_impossible_size(path, header, is_gzip=is_gzip)
            stream.seek(header.data_offset)
            voxels, trailing = _read_voxels(path, stream, header)
        except EOFError as error:
            raise truncated(path) from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise corrupt(path, error) from error
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
        stream, _ = _decompressed(file)
        try:
            header = parse_nifti_header(path, stream.read(MAX_HEADER_BYTES))
        except EOFError as error:
            raise truncated(path) from error
        except (zlib.error, gzip.BadGzipFile) as error:
            raise corrupt(path, error) from error
    return MaskVolume(
        array_zyx=np.zeros(header.geometry.shape_zyx, np.uint8),
        geometry=header.geometry,
        source=_source(path, header),
        repairs=header.repairs,
    )


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


def _refuse_impossible_size(path: Path, header: NiftiHeader, *, is_gzip: bool) -> None:
    """Refuse a header that announces more than the file can hold, before allocating for it."""
    if path.name.lower().endswith(".bz2"):
        # Runs of one value shrink without bound; MAX_VOXELS limits what is allocated.
        return
    announced = header.dtype.itemsize * int(np.prod(header.native_shape, dtype=np.int64))
    capacity = path.stat().st_size * (_LARGEST_GZIP_RATIO if is_gzip else 1)
    if announced > capacity:
        raise truncated(path)


def _read_voxels(path: Path, stream: BinaryIO, header: NiftiHeader) -> tuple[ArrayZYX, bool]:
    """Return the voxels, and whether something else follows the compressed data."""
    voxels = np.empty(header.geometry.shape_zyx, dtype=np.float32)
    flat = voxels.reshape(-1)
    buffer = np.empty(min(_PART_VOXELS, flat.size), dtype=header.dtype)
    # A double may lie beyond float32's range; it becomes infinite and is replaced by the caller.
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, flat.size, buffer.size):
            part = flat[start : start + buffer.size]
            stored = buffer[: part.size]
            _fill(path, stream, stored.view(np.uint8).data)
            part[:] = stored
            if header.slope != 1:
                part *= np.float32(header.slope)
            if header.intercept != 0:
                part += np.float32(header.intercept)
    # Reading on to the end makes gzip compare its checksum.
    try:
        stream.read(1)
    except gzip.BadGzipFile as error:
        # gzip(1) ignores it too. A wrong checksum says so in other words.
        if "Not a gzipped file" not in str(error):
            raise
        return voxels, True
    return voxels, False


def _fill(path: Path, stream: BinaryIO, buffer: memoryview) -> None:
    """Read until the buffer is full."""
    filled = 0
    while filled < len(buffer):
        count = cast(gzip.GzipFile, stream).readinto(buffer[filled:])
        if not count:
            raise truncated(path)
        filled += count
